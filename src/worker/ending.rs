//! Why a connection ends, for its socket: what the other side is told, and what is counted.
//!
//! Called by `turn` and `arrivals`.

use crate::metrics::Counters;
use crate::net::tls::TlsFault;
use crate::net::transport::{End, Fault};
use crate::shard::{CloseReason, ConnectionId};
use crate::websocket::CloseCode;

/// By the rules of MQTT, or below them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Mqtt(CloseReason),
    Fault(Fault),
}

impl From<CloseReason> for Ending {
    fn from(reason: CloseReason) -> Ending {
        Ending::Mqtt(reason)
    }
}

impl From<End> for Ending {
    fn from(end: End) -> Ending {
        match end {
            End::Closed => Ending::Mqtt(CloseReason::PeerClosed),
            End::Fault(fault) => Ending::Fault(fault),
        }
    }
}

impl Ending {
    /// What a WebSocket is closed with (RFC 6455 section 7.4.1). Where its own rules were broken it has been told already.
    pub fn close_code(self) -> CloseCode {
        match self {
            Ending::Mqtt(CloseReason::Disconnect | CloseReason::PeerClosed) => CloseCode::Normal,
            Ending::Mqtt(CloseReason::Stopping) => CloseCode::GoingAway,
            Ending::Mqtt(CloseReason::Malformed(_) | CloseReason::Violation(_)) => CloseCode::ProtocolError,
            Ending::Mqtt(
                CloseReason::KeepAlive
                | CloseReason::TakenOver
                | CloseReason::ConnectTimeout
                | CloseReason::Refused
                | CloseReason::AccountEnded,
            ) => CloseCode::Policy,
            Ending::Fault(_) => CloseCode::ProtocolError,
        }
    }
}

pub fn count_ending(counters: &mut Counters, connection: ConnectionId, ending: Ending) {
    match ending {
        Ending::Mqtt(reason) => count_close(counters, connection, reason),
        Ending::Fault(fault) => count_fault(counters, connection, fault),
    }
}

fn count_close(counters: &mut Counters, connection: ConnectionId, reason: CloseReason) {
    let count = match reason {
        CloseReason::Disconnect => &mut counters.closed_disconnect,
        CloseReason::PeerClosed => &mut counters.closed_peer,
        CloseReason::Malformed(rule) => {
            tracing::debug!(?connection, rule = rule.name(), "closed: {rule}");
            counters.malformed.count(rule.index());
            &mut counters.closed_malformed
        }
        CloseReason::Violation(rule) => {
            tracing::debug!(?connection, ?rule, "closed: a packet where the flow does not allow it");
            &mut counters.closed_violation
        }
        CloseReason::KeepAlive => &mut counters.closed_keep_alive,
        CloseReason::TakenOver => &mut counters.closed_taken_over,
        CloseReason::ConnectTimeout => &mut counters.closed_connect_timeout,
        // Counted where the CONNECT was.
        CloseReason::Refused => {
            tracing::debug!(?connection, "closed: the CONNECT was refused");
            return;
        }
        CloseReason::AccountEnded => &mut counters.closed_account_ended,
        CloseReason::Stopping => &mut counters.closed_stopping,
    };
    *count += 1;
    if !matches!(reason, CloseReason::Malformed(_) | CloseReason::Violation(_)) {
        tracing::debug!(?connection, ?reason, "closed");
    }
}

fn count_fault(counters: &mut Counters, connection: ConnectionId, fault: Fault) {
    match fault {
        Fault::Proxy => {
            tracing::debug!(?connection, "closed: it does not begin with a PROXY header");
            counters.closed_proxy += 1;
        }
        Fault::Tls(fault) => {
            tracing::debug!(?connection, ?fault, "closed: {}", fault.sentence());
            counters.closed_tls += 1;
            *match fault {
                TlsFault::NotTls => &mut counters.tls_not_tls,
                TlsFault::Incompatible => &mut counters.tls_incompatible,
                TlsFault::ApplicationProtocol => &mut counters.tls_application_protocol,
                TlsFault::NoClientCertificate => &mut counters.tls_no_client_certificate,
                TlsFault::ClientCertificateExpired => &mut counters.tls_client_certificate_expired,
                TlsFault::ClientCertificateRefused => &mut counters.tls_client_certificate_refused,
                TlsFault::RefusedByClient(_) => &mut counters.tls_refused_by_client,
                TlsFault::Decrypt => &mut counters.tls_decrypt,
                TlsFault::Misbehaved => &mut counters.tls_misbehaved,
            } += 1;
        }
        Fault::Upgrade(rule) => {
            tracing::debug!(?connection, rule = rule.name(), "closed: {rule}");
            counters.closed_websocket += 1;
            counters.upgrades_refused.count(rule.index());
        }
        Fault::Frame(rule) => {
            tracing::debug!(?connection, rule = rule.name(), "closed: {rule}");
            counters.closed_websocket += 1;
            counters.frames_refused.count(rule.index());
        }
    }
}
