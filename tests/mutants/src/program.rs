//! A program that tells by what it prints what became of a fault.

use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

/// Within this, the slowest that a program was seen to be is many times over.
const RUN_SECONDS_MAX: u64 = 300;

/// Runs it to its end and gives that, and what it has printed; `None`: it does not come to its end.
pub fn run(command: &mut Command) -> anyhow::Result<Option<(ExitStatus, String)>> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let mut stdout = child.stdout.take().context("a pipe")?;
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).map(|_| bytes)
    });
    let until = Instant::now() + Duration::from_secs(RUN_SECONDS_MAX);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= until {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    };
    let bytes = reader.join().expect("it ends with its pipe")?;
    Ok(Some((status, String::from_utf8_lossy(&bytes).into_owned())))
}
