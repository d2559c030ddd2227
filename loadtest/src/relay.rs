//! A relay without broker semantics: the floor a broker is compared with, and a check of the generator's own cost.
//!
//! Called  by `main` (`skein-load relay`).
//! Holds   - QoS 0 only, whole Topic Names and PREFIX/# only, no Keep Alive, no session, no limits but `OUTBOX_MAX`;
//!         - a PUBLISH is copied as it came to each subscriber's outbox; each outbox leaves in one write a turn.

use std::collections::HashMap;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use rustix::event::epoll;

use crate::client::resolve;
use crate::packet;

const LISTENER: u64 = u64::MAX;
const READ_BYTES: usize = 256 * 1024;
/// A subscriber that lets more than this wait is closed.
const OUTBOX_MAX: usize = 256 << 20;
/// The longest frame taken; a longer one closes.
const FRAME_MAX: usize = 1 << 20;

#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Where to listen, HOST:PORT
    #[arg(long, default_value = "127.0.0.1:1884")]
    pub listen: String,
}

struct Peer {
    socket: TcpStream,
    leftover: Vec<u8>,
    outbox: Vec<u8>,
    is_dirty: bool,
    waits_writable: bool,
    /// The topic of its last PUBLISH and where that goes: most publishers stay with one.
    last: Option<(Vec<u8>, u64, Vec<u32>)>,
}

#[derive(Default)]
struct Relay {
    peers: Vec<Option<Peer>>,
    exact: HashMap<Vec<u8>, Vec<u32>>,
    /// Filters PREFIX/# without the '#'.
    prefixes: Vec<(Vec<u8>, u32)>,
    /// Changes with every subscription; a `last` of another version is looked up again.
    version: u64,
    dirty: Vec<u32>,
}

/// Runs until it is killed.
pub fn run(settings: &Settings) -> Result<()> {
    let address: SocketAddr = resolve(&settings.listen)?;
    let listener = TcpListener::bind(address).map_err(|error| anyhow!("cannot listen on {address}: {error}"))?;
    listener.set_nonblocking(true)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(
        &epoll,
        &listener,
        epoll::EventData::new_u64(LISTENER),
        epoll::EventFlags::IN,
    )?;
    println!("relay on {}, process {}", listener.local_addr()?, std::process::id());
    let mut relay = Relay::default();
    let mut buffer = vec![0; READ_BYTES + FRAME_MAX];
    let mut events: Vec<epoll::Event> = Vec::with_capacity(1024);
    loop {
        events.clear();
        match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("epoll_wait"),
        }
        for event in &events {
            let (token, flags) = (event.data.u64(), event.flags);
            if token == LISTENER {
                while let Ok((socket, _)) = listener.accept() {
                    socket.set_nodelay(true)?;
                    socket.set_nonblocking(true)?;
                    let token = epoll::EventData::new_u64(relay.peers.len() as u64);
                    epoll::add(&epoll, &socket, token, epoll::EventFlags::IN)?;
                    let (leftover, outbox) = (Vec::new(), Vec::new());
                    let peer = Peer {
                        socket,
                        leftover,
                        outbox,
                        is_dirty: false,
                        waits_writable: false,
                        last: None,
                    };
                    relay.peers.push(Some(peer));
                }
                continue;
            }
            if flags.contains(epoll::EventFlags::OUT) {
                relay.mark(token as u32);
            }
            if !relay.read(token as usize, &mut buffer) {
                relay.remove(token as u32);
            }
        }
        for index in std::mem::take(&mut relay.dirty) {
            let Some(peer) = &mut relay.peers[index as usize] else {
                continue;
            };
            peer.is_dirty = false;
            match std::io::Write::write(&mut peer.socket, &peer.outbox) {
                Ok(n) if n == peer.outbox.len() => peer.outbox.clear(),
                Ok(n) => drop(peer.outbox.drain(..n)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    relay.remove(index);
                    continue;
                }
            }
            let waits = !peer.outbox.is_empty();
            if waits != peer.waits_writable {
                peer.waits_writable = waits;
                let flags = if waits {
                    epoll::EventFlags::IN | epoll::EventFlags::OUT
                } else {
                    epoll::EventFlags::IN
                };
                epoll::modify(&epoll, &peer.socket, epoll::EventData::new_u64(index as u64), flags)?;
            }
        }
    }
}

impl Relay {
    fn mark(&mut self, index: u32) {
        if let Some(peer) = &mut self.peers[index as usize]
            && !peer.is_dirty
        {
            peer.is_dirty = true;
            self.dirty.push(index);
        }
    }

    fn remove(&mut self, index: u32) {
        self.peers[index as usize] = None;
        self.exact
            .values_mut()
            .for_each(|subscribers| subscribers.retain(|&other| other != index));
        self.prefixes.retain(|&(_, other)| other != index);
        self.version += 1;
    }

    /// False when the peer is to go.
    fn read(&mut self, index: usize, buffer: &mut [u8]) -> bool {
        let Some(peer) = &mut self.peers[index] else {
            return true;
        };
        let left = peer.leftover.len();
        let n = match peer.socket.read(&mut buffer[left..]) {
            Ok(0) => return false,
            Ok(n) => n,
            Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
        };
        buffer[..left].copy_from_slice(&peer.leftover);
        peer.leftover.clear();
        let bytes = &buffer[..left + n];
        let mut last = peer.last.take();
        let mut at = 0;
        loop {
            match packet::next_frame(&bytes[at..]) {
                Ok(Some(frame)) => {
                    let whole = &bytes[at..at + frame.len];
                    at += frame.len;
                    if !self.take(index as u32, frame, whole, &mut last) {
                        return false;
                    }
                }
                Ok(None) => break,
                Err(_) => return false,
            }
        }
        let Some(peer) = &mut self.peers[index] else {
            return true;
        };
        peer.last = last;
        peer.leftover.extend_from_slice(&bytes[at..]);
        peer.leftover.len() <= FRAME_MAX
    }

    fn take(
        &mut self,
        index: u32,
        frame: packet::Frame<'_>,
        whole: &[u8],
        last: &mut Option<(Vec<u8>, u64, Vec<u32>)>,
    ) -> bool {
        match frame.first_byte {
            0x30 => {
                let Some((length, rest)) = frame.body.split_first_chunk::<2>() else {
                    return false;
                };
                let Some(topic) = rest.get(..u16::from_be_bytes(*length) as usize) else {
                    return false;
                };
                let (last_topic, version, subscribers) = last.get_or_insert_with(|| (Vec::new(), u64::MAX, Vec::new()));
                if *version != self.version || last_topic != topic {
                    (*last_topic, *version) = (topic.to_vec(), self.version);
                    *subscribers = self.exact.get(topic).cloned().unwrap_or_default();
                    let wide = self.prefixes.iter().filter(|(prefix, _)| topic.starts_with(prefix));
                    subscribers.extend(wide.map(|&(_, subscriber)| subscriber));
                }
                for &subscriber in subscribers.iter() {
                    let Some(peer) = &mut self.peers[subscriber as usize] else {
                        continue;
                    };
                    if peer.outbox.len() < OUTBOX_MAX {
                        peer.outbox.extend_from_slice(whole);
                    }
                    if !peer.is_dirty {
                        peer.is_dirty = true;
                        self.dirty.push(subscriber);
                    }
                }
                true
            }
            0x10 => self.answer(index, &[0x20, 2, 0, 0]),
            0x82 => {
                let Some((id, rest)) = frame.body.split_first_chunk::<2>() else {
                    return false;
                };
                let Some((length, rest)) = rest.split_first_chunk::<2>() else {
                    return false;
                };
                let Some(filter) = rest.get(..u16::from_be_bytes(*length) as usize) else {
                    return false;
                };
                match filter.strip_suffix(b"#") {
                    Some(prefix) => self.prefixes.push((prefix.to_vec(), index)),
                    None => self.exact.entry(filter.to_vec()).or_default().push(index),
                }
                self.version += 1;
                self.answer(index, &[0x90, 3, id[0], id[1], 0])
            }
            0xC0 => self.answer(index, &[0xD0, 0]),
            _ => false,
        }
    }

    fn answer(&mut self, index: u32, bytes: &[u8]) -> bool {
        if let Some(peer) = &mut self.peers[index as usize] {
            peer.outbox.extend_from_slice(bytes);
        }
        self.mark(index);
        true
    }
}
