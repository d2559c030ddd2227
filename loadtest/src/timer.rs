//! A timer an epoll waits for: its own timeout is rounded up to a millisecond.
//!
//! Called  by the threads of `connect` and the publisher of `idle`, which keep a schedule.

use std::time::Duration;

use anyhow::Result;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};

pub struct Timer(OwnedFd);

impl Timer {
    pub fn new(epoll: &OwnedFd, token: u64) -> Result<Timer> {
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        epoll::add(epoll, &timer, epoll::EventData::new_u64(token), epoll::EventFlags::IN)?;
        Ok(Timer(timer))
    }

    /// Wakes once, `wait` from now.
    pub fn set(&self, wait: Duration) -> Result<()> {
        let wait = wait.max(Duration::from_nanos(1));
        let value = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec {
                tv_sec: wait.as_secs() as _,
                tv_nsec: wait.subsec_nanos() as _,
            },
        };
        rustix::time::timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &value)?;
        Ok(())
    }

    /// It has woken the epoll: that once was it.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}
