//! One thread's epoll: sockets with a number each, and the events of the last wait.
//!
//! Called  by `visits`, `backlog`, `retained` and the publisher of `idle`.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;

const EVENTS_MAX: usize = 1024;

pub struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poller {
    pub fn new() -> Result<Poller> {
        Ok(Poller {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS_MAX),
        })
    }

    pub fn fd(&self) -> &OwnedFd {
        &self.epoll
    }

    /// A socket that is dropped is out by itself.
    pub fn add(&self, socket: &TcpStream, token: u64) -> Result<()> {
        let token = epoll::EventData::new_u64(token);
        Ok(epoll::add(&self.epoll, socket, token, epoll::EventFlags::IN)?)
    }

    /// Waits until something is ready, `time` at most.
    pub fn wait(&mut self, time: Duration) -> Result<()> {
        let timeout = Timespec {
            tv_sec: time.as_secs() as _,
            tv_nsec: time.subsec_nanos() as _,
        };
        self.events.clear();
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut self.events),
            Some(&timeout),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("epoll_wait"),
        }
    }

    pub fn events(&self) -> &[epoll::Event] {
        &self.events
    }

    /// Token and flags of one event of the last wait.
    pub fn event(&self, at: usize) -> (u64, epoll::EventFlags) {
        let event = &self.events[at];
        (event.data.u64(), event.flags)
    }
}
