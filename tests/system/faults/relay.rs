//! A network in user space: TCP connections to a broker pass through it, and it delays, throttles, cuts and swallows.
//!
//! Called  by `network`, and by whoever needs a peer that is there and says nothing.
//! Holds   - bytes arrive in order or not at all, as TCP has it: what is held back comes when the fault is over;
//!         - a connection that is stranded passes nothing for ever, and neither end is told.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;

use crate::power_cut::Random;

/// How often a thread looks whether its connection is over.
const LOOK: Duration = Duration::from_millis(10);
/// Read at a time.
const PIECE_BYTES: usize = 1_000;
/// Pieces under way in one direction.
const PIECES: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Both ends see the connection closed.
    Closed,
    /// Both ends get a RST.
    Reset,
    /// The one that is sent to sees the end of what it reads, and may go on writing.
    Half,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Conditions {
    /// One way.
    pub delay: Duration,
    /// Of each direction of each connection; 0: any number.
    pub bytes_per_second: usize,
    /// Each direction is cut after less than so many bytes, another number each time.
    pub cut: Option<(Cut, usize)>,
    /// No byte passes until this is over.
    pub is_partitioned: bool,
}

struct Shared {
    conditions: Mutex<Conditions>,
    random: Mutex<Random>,
    /// Whose threads end lets go of its sockets: so they close at once.
    connections: Mutex<Vec<Weak<Connection>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    is_ended: AtomicBool,
}

struct Connection {
    client: TcpStream,
    broker: TcpStream,
    is_over: AtomicBool,
    is_stranded: AtomicBool,
}

pub struct Relay {
    pub port: u16,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl Relay {
    pub fn start(broker_port: u16, seed: u64) -> Relay {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        listener.set_nonblocking(true).unwrap();
        let shared = Arc::new(Shared {
            conditions: Mutex::default(),
            random: Mutex::new(Random::new(seed)),
            connections: Mutex::default(),
            threads: Mutex::default(),
            is_ended: AtomicBool::new(false),
        });
        let accepting = spawn({
            let shared = Arc::clone(&shared);
            move || {
                while !shared.is_ended.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((client, _)) => shared.connect(client, broker_port),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(LOOK),
                        Err(error) => panic!("the relay cannot accept: {error}"),
                    }
                }
            }
        });
        Relay {
            port,
            shared,
            accepting: Some(accepting),
        }
    }

    /// From now on.
    pub fn set(&self, conditions: Conditions) {
        *self.shared.conditions.lock().unwrap() = conditions;
    }

    /// The connections there are pass nothing any more; later ones do.
    pub fn strand(&self) {
        for connection in self.shared.connections.lock().unwrap().iter().filter_map(Weak::upgrade) {
            connection.is_stranded.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.is_ended.store(true, Ordering::Relaxed);
        let accepted = self.accepting.take().unwrap().join();
        let threads = std::mem::take(&mut *self.shared.threads.lock().unwrap());
        let passed: Vec<_> = threads.into_iter().map(JoinHandle::join).collect();
        if !std::thread::panicking() {
            accepted.unwrap();
            passed.into_iter().for_each(|passed| passed.unwrap());
        }
    }
}

impl Shared {
    fn connect(self: &Arc<Shared>, client: TcpStream, broker_port: u16) {
        // Refused where the broker does not run: then the client is closed.
        let Ok(broker) = TcpStream::connect((Ipv4Addr::LOCALHOST, broker_port)) else {
            return;
        };
        for socket in [&client, &broker] {
            socket.set_nonblocking(false).unwrap();
            socket.set_nodelay(true).unwrap();
            socket.set_read_timeout(Some(LOOK)).unwrap();
            socket.set_write_timeout(Some(LOOK)).unwrap();
        }
        let connection = Arc::new(Connection {
            client,
            broker,
            is_over: AtomicBool::new(false),
            is_stranded: AtomicBool::new(false),
        });
        let mut connections = self.connections.lock().unwrap();
        connections.retain(|connection| connection.strong_count() > 0);
        connections.push(Arc::downgrade(&connection));
        let mut threads = self.threads.lock().unwrap();
        threads.retain(|thread| !thread.is_finished());
        for is_upward in [true, false] {
            let (sender, receiver) = sync_channel(PIECES);
            let (shared, passing) = (Arc::clone(self), Arc::clone(&connection));
            threads.push(spawn(move || shared.take(&passing, is_upward, &sender)));
            let (shared, passing) = (Arc::clone(self), Arc::clone(&connection));
            threads.push(spawn(move || shared.pass(&passing, is_upward, &receiver)));
        }
    }

    fn conditions(&self) -> Conditions {
        *self.conditions.lock().unwrap()
    }

    fn is_over(&self, connection: &Connection) -> bool {
        self.is_ended.load(Ordering::Relaxed) || connection.is_over.load(Ordering::Relaxed)
    }

    /// Waits while nothing may pass. False: for ever.
    fn may_pass(&self, connection: &Connection) -> bool {
        while !self.is_over(connection) {
            if !self.conditions().is_partitioned && !connection.is_stranded.load(Ordering::Relaxed) {
                return true;
            }
            sleep(LOOK);
        }
        false
    }

    /// Reads one direction. An empty piece is its end.
    fn take(&self, connection: &Connection, is_upward: bool, pieces: &SyncSender<(Instant, Vec<u8>)>) {
        let mut from = if is_upward {
            &connection.client
        } else {
            &connection.broker
        };
        let mut bytes = [0; PIECE_BYTES];
        while !self.is_over(connection) {
            let count = match from.read(&mut bytes) {
                Ok(count) => count,
                // Interrupted: a process that another thread has started has ended.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
                Err(_) => 0,
            };
            let due = Instant::now() + self.conditions().delay;
            if pieces.send((due, bytes[..count].to_vec())).is_err() || count == 0 {
                return;
            }
        }
    }

    /// Writes the same direction.
    fn pass(&self, connection: &Connection, is_upward: bool, pieces: &Receiver<(Instant, Vec<u8>)>) {
        let to = if is_upward {
            &connection.broker
        } else {
            &connection.client
        };
        let share = self.random.lock().unwrap().next() as f64 / u64::MAX as f64;
        let mut passed = 0;
        while !self.is_over(connection) {
            let (due, piece) = match pieces.recv_timeout(LOOK) {
                Ok(piece) => piece,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            sleep(due.saturating_duration_since(Instant::now()));
            if !self.may_pass(connection) {
                break;
            }
            if piece.is_empty() {
                // The end has come the whole way: both sides close, as after a FIN that is answered.
                let _ = to.shutdown(Shutdown::Write);
                connection.is_over.store(true, Ordering::Relaxed);
                break;
            }
            let conditions = self.conditions();
            let mut piece = &piece[..];
            let cut = conditions.cut.map(|(cut, most)| (cut, (share * most as f64) as usize));
            let cut = cut.filter(|(_, after)| passed + piece.len() > *after);
            if let Some((_, after)) = cut {
                piece = &piece[..after.saturating_sub(passed).min(piece.len())];
            }
            if !self.write(connection, to, piece) {
                connection.is_over.store(true, Ordering::Relaxed);
                break;
            }
            passed += piece.len();
            if let Some((cut, _)) = cut {
                match cut {
                    Cut::Closed => connection.is_over.store(true, Ordering::Relaxed),
                    Cut::Reset => {
                        for socket in [&connection.client, &connection.broker] {
                            // It may have been reset by its own end.
                            let _ = set_socket_linger(socket, Some(Duration::ZERO));
                        }
                        connection.is_over.store(true, Ordering::Relaxed);
                    }
                    Cut::Half => drop(to.shutdown(Shutdown::Write)),
                }
                break;
            }
            if let Some(span) = (piece.len() * 1_000).checked_div(conditions.bytes_per_second) {
                sleep(Duration::from_millis(span as u64));
            }
        }
    }

    fn write(&self, connection: &Connection, mut to: &TcpStream, mut piece: &[u8]) -> bool {
        while !piece.is_empty() {
            match to.write(piece) {
                Ok(count) => piece = &piece[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock && !self.is_over(connection) => {}
                Err(_) => return false,
            }
        }
        true
    }
}
