//! One connection's TLS, as bytes: records in, plaintext out, and the other way.
//!
//! Owns    rustls's state of the connection; no buffer, since the callers' serve for all connections of a core.
//! Called  by `transport`.
//! Holds   - whatever rustls wants to say (handshake, tickets, key updates, alerts) is appended to what goes to the socket in
//!           the order in which it was made: a record that was sealed is never dropped or overtaken;
//!         - a session that is resumed shows the client certificate of its first handshake: it is verified again, since it may
//!           have expired since, and nothing of the client's is handed out before that;
//!         - a fault that rustls finds leaves its alert (RFC 8446 section 6.2) behind, to be sent before the close.

use std::sync::Arc;

use rustls::pki_types::UnixTime;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic};
use rustls::{AlertDescription, CertificateError, Error, HandshakeKind, ServerConfig};

use super::certificate::common_name;

/// Why a connection's TLS ended it; counted by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFault {
    /// What came is no TLS: MQTT or HTTP without it, or bytes that are broken.
    NotTls,
    /// No protocol version, cipher suite or key exchange that both know.
    Incompatible,
    /// The application protocols that the client offers (ALPN) are others.
    ApplicationProtocol,
    /// A client certificate is needed and none came.
    NoClientCertificate,
    ClientCertificateExpired,
    /// The client certificate was issued by somebody else, or is none at all.
    ClientCertificateRefused,
    /// The client said so: mostly that it does not trust this broker's certificate.
    RefusedByClient(AlertDescription),
    /// A record whose protection is broken.
    Decrypt,
    /// A message where the protocol does not allow it.
    Misbehaved,
}

impl TlsFault {
    pub fn sentence(self) -> &'static str {
        match self {
            TlsFault::NotTls => "what came is no TLS",
            TlsFault::Incompatible => "no TLS version, cipher suite or key exchange that both sides know",
            TlsFault::ApplicationProtocol => "the client offers other application protocols (ALPN)",
            TlsFault::NoClientCertificate => "the client has no certificate, and --tls-client-ca asks for one",
            TlsFault::ClientCertificateExpired => "the client's certificate has expired",
            TlsFault::ClientCertificateRefused => "the client's certificate was not issued by --tls-client-ca",
            TlsFault::RefusedByClient(_) => "the client ended TLS; mostly it does not trust the broker's certificate",
            TlsFault::Decrypt => "a TLS record is broken",
            TlsFault::Misbehaved => "a TLS message where the protocol does not allow it",
        }
    }

    fn of(error: &Error) -> TlsFault {
        match error {
            Error::InvalidMessage(_) => TlsFault::NotTls,
            Error::PeerIncompatible(_) => TlsFault::Incompatible,
            Error::NoApplicationProtocol => TlsFault::ApplicationProtocol,
            Error::NoCertificatesPresented => TlsFault::NoClientCertificate,
            Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
                TlsFault::ClientCertificateExpired
            }
            Error::InvalidCertificate(_) | Error::InvalidCertRevocationList(_) => TlsFault::ClientCertificateRefused,
            Error::AlertReceived(alert) => TlsFault::RefusedByClient(*alert),
            Error::DecryptError | Error::PeerSentOversizedRecord => TlsFault::Decrypt,
            _ => TlsFault::Misbehaved,
        }
    }
}

/// What came of the records that were given.
#[derive(Debug)]
pub struct Opened {
    /// Bytes that were used up. The rest is a part of a record or of a handshake message: it is given again, in front of
    /// what follows it.
    pub consumed: usize,
    /// The handshake has ended within these records.
    pub established: Option<HandshakeKind>,
    pub end: Option<TlsEnd>,
}

/// No further plaintext will come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsEnd {
    /// The client has said that it sends no more (close_notify).
    Closed,
    Fault(TlsFault),
}

pub struct TlsLayer {
    connection: UnbufferedServerConnection,
    /// Until the handshake has ended.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    /// Has ended by a fault: rustls is asked for nothing any more.
    is_broken: bool,
}

impl TlsLayer {
    pub fn new(
        config: &Arc<ServerConfig>,
        verifier: &Option<Arc<dyn ClientCertVerifier>>,
    ) -> Result<TlsLayer, TlsFault> {
        let connection = UnbufferedServerConnection::new(Arc::clone(config)).map_err(|error| TlsFault::of(&error))?;
        Ok(TlsLayer {
            connection,
            verifier: verifier.clone(),
            is_broken: false,
        })
    }

    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// The common name in the client's certificate.
    pub fn client_common_name(&self) -> Option<String> {
        common_name(self.connection.peer_certificates()?.first()?)
    }

    /// Opens all whole records; `plaintext` gets what was in each.
    /// Not to be called again after a fault.
    pub fn open(&mut self, records: &mut [u8], sealed: &mut Sealed, mut plaintext: impl FnMut(&[u8])) -> Opened {
        let was_handshaking = self.is_handshaking();
        let mut unverified = (was_handshaking && self.verifier.is_some()).then(Vec::new);
        let mut opened = Opened {
            consumed: 0,
            established: None,
            end: None,
        };
        loop {
            let status = self.connection.process_tls_records(&mut records[opened.consumed..]);
            let UnbufferedStatus { mut discard, state } = status;
            let mut is_last = false;
            let failed = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    let mut failed = None;
                    while let Some(record) = traffic.next_record() {
                        match record {
                            Ok(record) => {
                                discard += record.discard;
                                match &mut unverified {
                                    Some(unverified) => unverified.extend_from_slice(record.payload),
                                    None => plaintext(record.payload),
                                }
                            }
                            Err(error) => failed = Some(error),
                        }
                    }
                    failed
                }
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    sealed.encode(data);
                    None
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    // What was encoded is in `sealed`, which leaves in order.
                    data.done();
                    None
                }
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    opened.end = Some(TlsEnd::Closed);
                    is_last = true;
                    None
                }
                Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => {
                    is_last = true;
                    None
                }
                // Early data is never offered.
                Ok(_) => Some(Error::HandshakeNotComplete),
                Err(error) => Some(error),
            };
            opened.consumed += discard;
            if let Some(error) = failed {
                self.alert(sealed);
                self.is_broken = true;
                opened.end = Some(TlsEnd::Fault(TlsFault::of(&error)));
                return opened;
            }
            if is_last {
                break;
            }
        }
        if was_handshaking && !self.is_handshaking() {
            match self.verify_again() {
                Ok(()) => opened.established = self.connection.handshake_kind(),
                Err(fault) => {
                    opened.end = Some(TlsEnd::Fault(fault));
                    return opened;
                }
            }
        }
        if let Some(verified) = unverified.filter(|bytes| !bytes.is_empty()) {
            plaintext(&verified);
        }
        opened
    }

    fn verify_again(&mut self) -> Result<(), TlsFault> {
        let Some(verifier) = self.verifier.take() else {
            return Ok(());
        };
        match self.connection.peer_certificates() {
            Some([end_entity, intermediates @ ..]) => verifier
                .verify_client_cert(end_entity, intermediates, UnixTime::now())
                .map(drop)
                .map_err(|error| TlsFault::of(&error)),
            _ => Err(TlsFault::NoClientCertificate),
        }
    }

    /// After an error rustls has the alert ready, if the peer is to be told. Only that is taken from it: to rustls the
    /// messages behind the broken one still lie in the buffer, and it panics if it looks for them in another.
    fn alert(&mut self, sealed: &mut Sealed) {
        while self.connection.wants_write() {
            match self.connection.process_tls_records(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(data)) => sealed.encode(data),
                _ => return,
            }
        }
    }

    /// Seals plaintext into records at the end of `sealed`. `incoming` is the part of a record that waits for its rest.
    pub fn seal(&mut self, plaintext: &[u8], incoming: &mut [u8], sealed: &mut Sealed) -> Result<(), TlsFault> {
        self.writing(incoming, sealed, |traffic, sealed| {
            let mut exhausted = Ok(());
            sealed.append(|room| match traffic.encrypt(plaintext, room) {
                Ok(written) => Ok(written),
                Err(EncryptError::InsufficientSize(size)) => Err(size.required_size),
                // 2^24 records under one key and no new one was agreed on: RFC 8446 section 5.5.
                Err(EncryptError::EncryptExhausted) => {
                    exhausted = Err(TlsFault::Misbehaved);
                    Ok(0)
                }
            });
            exhausted
        })
    }

    /// Says that nothing more will come (close_notify), unless the handshake is not over.
    pub fn close(&mut self, incoming: &mut [u8], sealed: &mut Sealed) {
        let closed = self.writing(incoming, sealed, |traffic, sealed| {
            sealed.append(|room| match traffic.queue_close_notify(room) {
                Err(EncryptError::InsufficientSize(size)) => Err(size.required_size),
                closed => Ok(closed.unwrap_or(0)),
            });
            Ok(())
        });
        // A connection that is broken ends without it.
        let _ = closed;
    }

    fn writing(
        &mut self,
        incoming: &mut [u8],
        sealed: &mut Sealed,
        write: impl FnOnce(&mut Traffic<'_>, &mut Sealed) -> Result<(), TlsFault>,
    ) -> Result<(), TlsFault> {
        if self.is_broken {
            return Err(TlsFault::Misbehaved);
        }
        loop {
            match self.connection.process_tls_records(incoming).state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => return write(&mut traffic, sealed),
                Ok(ConnectionState::EncodeTlsData(data)) => sealed.encode(data),
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => {}
                Ok(_) => return Err(TlsFault::Misbehaved),
                Err(error) => return Err(TlsFault::of(&error)),
            }
        }
    }
}

type Traffic<'c> = WriteTraffic<'c, ServerConnectionData>;

/// Records on their way to the socket, of one connection at a time: a buffer of the core's that only grows.
#[derive(Default)]
pub struct Sealed {
    buffer: Vec<u8>,
    len: usize,
}

impl Sealed {
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Lets `write` put bytes behind those that are here: it says how many it wrote, or how many it needs room for.
    fn append(&mut self, mut write: impl FnMut(&mut [u8]) -> Result<usize, usize>) {
        loop {
            match write(&mut self.buffer[self.len..]) {
                Ok(written) => {
                    self.len += written;
                    return;
                }
                Err(needed) => {
                    assert!(self.len + needed > self.buffer.len(), "it had the room it asked for");
                    self.buffer.resize((self.len + needed).next_power_of_two(), 0);
                }
            }
        }
    }

    fn encode(&mut self, mut data: EncodeTlsData<'_, ServerConnectionData>) {
        self.append(|room| match data.encode(room) {
            Err(EncodeError::InsufficientSize(size)) => Err(size.required_size),
            encoded => Ok(encoded.expect("it is encoded once")),
        });
    }
}
