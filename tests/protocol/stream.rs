//! One connection of a client: MQTT, WebSocket, TLS, a non-blocking socket, those of them that its transport has.
//!
//! Called  by `network.rs`, which polls the sockets.
//! Holds   - no call blocks;
//!         - a rule that the broker breaks below MQTT is kept as the connection's `fault`, the first one;
//!         - how MQTT bytes are cut into frames, records and segments varies from send to send and is the same in every
//!           run. Over TCP alone they are not cut: there the conversations say how.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use crate::websocket::{Client, Dice};

pub struct Stream {
    /// `None` when it could not connect, and after we have closed it.
    pub socket: Option<TcpStream>,
    /// MQTT bytes that nobody has asked for.
    pub arrived: Vec<u8>,
    tls: Option<Box<ClientConnection>>,
    websocket: Option<Client>,
    dice: Dice,
    /// What it says during the handshakes goes out in small pieces.
    hesitates: bool,
    /// Waits for the socket.
    unsent: Vec<u8>,
    /// The broker has ended what carries MQTT: nothing more arrives.
    ended: bool,
    /// The socket will give no more.
    ended_socket: bool,
    /// We have, so the broker owes no farewell.
    shut: bool,
    fault: Option<String>,
}

impl Stream {
    pub fn new(socket: Option<TcpStream>, tls: Option<&Arc<ClientConfig>>, is_websocket: bool, seed: u64) -> Stream {
        let tls = tls.map(|config| {
            let name = ServerName::try_from("localhost").expect("it is a name");
            let mut tls = ClientConnection::new(Arc::clone(config), name).expect("the configuration is right");
            tls.set_buffer_limit(None);
            Box::new(tls)
        });
        let mut dice = Dice::new(!seed);
        let mut stream = Stream {
            hesitates: dice.one_in(4),
            ended: socket.is_none(),
            ended_socket: socket.is_none(),
            arrived: Vec::new(),
            tls,
            websocket: is_websocket.then(|| Client::new(seed)),
            dice,
            unsent: Vec::new(),
            shut: false,
            fault: None,
            socket,
        };
        let Some(socket) = &stream.socket else { return stream };
        let _ = socket.set_nodelay(true);
        socket
            .set_nonblocking(true)
            .expect("a connected socket can be set non-blocking");
        if let (Some(client), Ok(address)) = (&stream.websocket, socket.peer_addr()) {
            let request = client.request(address.port());
            // TLS keeps it until its own handshake is done.
            stream.unsent = stream.sealed(request.as_bytes());
        }
        stream.unseal_and_seal(&[]);
        stream
    }

    /// Handshakes go on.
    pub fn is_opening(&self) -> bool {
        let tls = self.tls.as_ref().is_some_and(|tls| tls.is_handshaking());
        let websocket = self.websocket.as_ref().is_some_and(|client| !client.is_open());
        self.socket.is_some() && !self.ended && (tls || websocket)
    }

    pub fn is_ended(&self) -> bool {
        self.ended
    }

    pub fn wants_read(&self) -> bool {
        !self.ended_socket
    }

    pub fn wants_write(&self) -> bool {
        self.socket.is_some() && !self.unsent.is_empty()
    }

    /// What waits will never be taken.
    pub fn give_up(&mut self) {
        self.unsent.clear();
    }

    /// What goes to the socket for these MQTT bytes, in pieces. `whole`: in one frame and one record.
    pub fn pieces_of(&mut self, bytes: &[u8], whole: bool) -> Vec<Vec<u8>> {
        let framed = match &mut self.websocket {
            Some(client) if whole => {
                let mut frames = Vec::new();
                client.frame(bytes, &mut frames);
                frames
            }
            Some(client) => client.framed(bytes),
            None => bytes.to_vec(),
        };
        let mut pieces = Vec::new();
        for part in self.parts_of(&framed, whole) {
            let sealed = self.sealed(&part);
            pieces.extend(self.parts_of(&sealed, whole));
        }
        pieces
    }

    /// Half of the time the whole; otherwise two or three parts of it.
    fn parts_of(&mut self, bytes: &[u8], whole: bool) -> Vec<Vec<u8>> {
        let is_plain = self.tls.is_none() && self.websocket.is_none();
        if is_plain || whole || self.dice.one_in(2) {
            return vec![bytes.to_vec()];
        }
        let count = 2 + self.dice.below(2);
        let mut parts = self.dice.cut(bytes, count);
        parts.retain(|part| !part.is_empty());
        parts.into_iter().map(<[u8]>::to_vec).collect()
    }

    /// In records of their own, behind what else TLS has to say.
    fn sealed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let Some(tls) = &mut self.tls else {
            return bytes.to_vec();
        };
        // After an error TLS has nothing to say but the alert.
        let _ = tls.writer().write_all(bytes);
        let mut records = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut records).expect("a vector takes everything");
        }
        records
    }

    pub fn push(&mut self, piece: &[u8]) {
        self.unsent.extend_from_slice(piece);
    }

    /// Gives the socket what it takes now.
    pub fn write(&mut self) {
        let offered = match self.hesitates && self.is_opening() {
            true => self.unsent.len().min(1 + self.dice.below(100)),
            false => self.unsent.len(),
        };
        let Some(socket) = &mut self.socket else { return };
        let mut taken = 0;
        while taken < offered {
            match socket.write(&self.unsent[taken..offered]) {
                Ok(length) => taken += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The broker no longer listens. Whether it should have is for the next expectation to say.
                Err(_) => taken = self.unsent.len(),
            }
        }
        self.unsent.drain(..taken);
    }

    /// Takes what the socket has now.
    pub fn read(&mut self) {
        let mut scratch = [0; 64 * 1024];
        while let Some(socket) = &mut self.socket
            && !self.ended_socket
        {
            match socket.read(&mut scratch) {
                Ok(length @ 1..) => self.unseal_and_seal(&scratch[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A reset ends a connection as a FIN does.
                Ok(0) | Err(_) => self.end(),
            }
        }
    }

    fn end(&mut self) {
        self.ended_socket = true;
        let is_open = !self.is_opening();
        if is_open && !self.shut && !self.ended && (self.tls.is_some() || self.websocket.is_some()) {
            self.blame("the socket was closed without a farewell of the layers above it".to_owned());
        }
        self.ended = true;
    }

    fn blame(&mut self, fault: String) {
        self.fault.get_or_insert(fault);
    }

    /// Opens the records, takes what is in them, and has ready for the socket what TLS says to that.
    fn unseal_and_seal(&mut self, mut records: &[u8]) {
        if self.tls.is_none() {
            return self.unframe(records);
        }
        loop {
            let tls = self.tls.as_mut().expect("just seen");
            if !records.is_empty()
                && let Err(error) = tls.read_tls(&mut records)
            {
                return self.blame(format!("TLS: {error}"));
            }
            let state = tls.process_new_packets();
            let mut plain = Vec::new();
            // It has no more for now, or for ever: `state` says which.
            let _ = tls.reader().read_to_end(&mut plain);
            let has_ended = match state {
                Ok(state) => state.peer_has_closed(),
                Err(error) => {
                    self.blame(format!("TLS: {error}"));
                    true
                }
            };
            self.unframe(&plain);
            if has_ended && !self.ended {
                if self.websocket.as_ref().is_some_and(Client::is_open) && !self.shut {
                    self.blame("TLS was closed without a close frame before".to_owned());
                }
                self.ended = true;
            }
            if records.is_empty() || has_ended {
                break;
            }
        }
        let answers = self.sealed(&[]);
        self.unsent.extend(answers);
    }

    fn unframe(&mut self, bytes: &[u8]) {
        let Some(client) = &mut self.websocket else {
            return self.arrived.extend_from_slice(bytes);
        };
        let mut answers = Vec::new();
        let taken = client.take(bytes, &mut self.arrived, &mut answers);
        self.ended |= client.is_closed() || taken.is_err();
        if let Err(fault) = taken {
            self.blame(format!("WebSocket: {fault}"));
        }
        if !answers.is_empty() {
            let answers = self.sealed(&answers);
            self.unsent.extend(answers);
        }
    }

    /// What the layers say before the sending half ends: TLS its close_notify, half of the WebSockets a close frame.
    pub fn say_farewell(&mut self) {
        self.shut = true;
        if let Some(client) = &mut self.websocket
            && self.dice.one_in(2)
        {
            let frame = client.close_frame();
            let sealed = self.sealed(&frame);
            self.unsent.extend(sealed);
        }
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
        }
        let farewell = self.sealed(&[]);
        self.unsent.extend(farewell);
    }

    /// Ends the sending half of the socket.
    pub fn shutdown(&mut self) {
        if let Some(socket) = &self.socket {
            let _ = socket.shutdown(Shutdown::Write);
        }
    }

    pub fn close(&mut self, by_reset: bool) {
        let Some(socket) = self.socket.take() else { return };
        if by_reset {
            rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).expect("a socket can linger");
        } else {
            // Unread bytes would turn the FIN of `close` into a reset.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// What the broker has not done yet and must.
    pub fn debt(&self) -> Option<&'static str> {
        if self.socket.is_none() {
            None
        } else if self.ended && !self.ended_socket {
            Some("the end of the socket, after that of the layers above it")
        } else if !self.ended && self.websocket.as_ref().is_some_and(Client::awaits_pong) {
            Some("a pong")
        } else if self.is_opening() {
            Some("the end of the handshake")
        } else {
            None
        }
    }

    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }
}
