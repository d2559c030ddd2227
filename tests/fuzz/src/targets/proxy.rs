//! PROXY headers, against a second reader of the same text: the specification's, sentence by sentence, of whole headers; and of
//! what can become none any more.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use fuzz::limits::{PROXY_HEADER_BYTES_MAX, PROXY_TEXT_BYTES_MAX};
use fuzz::net::proxy::{Proxy, proxy_header};

pub fn check(bytes: &[u8]) {
    let verdict = proxy_header(bytes);
    // More bytes change no verdict that has fallen, and until one falls there is room for them.
    let mut fallen = None;
    for length in 0..=bytes.len().min(2 * PROXY_HEADER_BYTES_MAX) {
        let found = proxy_header(&bytes[..length]);
        match fallen {
            Some(before) => assert_eq!(found, before, "with {length} bytes"),
            None if found == Proxy::Incomplete => {
                let may_wait = length < PROXY_HEADER_BYTES_MAX && may_become_one(&bytes[..length]);
                assert!(may_wait, "with {length} bytes");
            }
            None => fallen = Some(found),
        }
        if let (Proxy::Header { consumed, .. }, true) = (found, fallen == Some(found)) {
            assert!(consumed <= length && consumed <= PROXY_HEADER_BYTES_MAX);
        }
    }
    assert_eq!(fallen.unwrap_or(Proxy::Incomplete), verdict);

    match (whole(bytes), verdict) {
        (Some((consumed, client)), found) => assert_eq!(found, Proxy::Header { consumed, client }),
        (None, Proxy::Header { .. }) => panic!("a header where there is none"),
        (None, _) => {}
    }
}

/// The header at the start, and the client it names.
fn whole(bytes: &[u8]) -> Option<(usize, Option<SocketAddr>)> {
    match bytes.first()? {
        b'P' => line(bytes),
        _ => binary(bytes),
    }
}

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Whether more bytes may make a header of these: every field that is there is one that a header can have.
fn may_become_one(bytes: &[u8]) -> bool {
    let agree = |start: &&[u8]| start.iter().zip(bytes).all(|(wanted, byte)| wanted == byte);
    if bytes.first() == Some(&b'P') {
        let starts: [&[u8]; 3] = [b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN"];
        let end = bytes.iter().position(|&byte| byte == b'\r').unwrap_or(bytes.len());
        return starts.iter().any(agree) && end + 2 <= PROXY_TEXT_BYTES_MAX && end + 1 >= bytes.len();
    }
    let (command, family) = (bytes.get(12), bytes.get(13));
    let is_family =
        |family: &u8| command == Some(&0x20) || matches!(family, 0x00..=0x02 | 0x10..=0x12 | 0x20..=0x22 | 0x30..=0x32);
    let length = bytes
        .get(14..16)
        .map_or(0, |length| usize::from(length[0]) << 8 | usize::from(length[1]));
    agree(&SIGNATURE)
        && command.is_none_or(|command| matches!(command, 0x20 | 0x21))
        && family.is_none_or(is_family)
        && 16 + length <= PROXY_HEADER_BYTES_MAX
}

fn line(bytes: &[u8]) -> Option<(usize, Option<SocketAddr>)> {
    let end = bytes.iter().position(|&byte| byte == b'\r')?;
    let consumed = end + 2;
    if bytes.get(end + 1) != Some(&b'\n') || consumed > PROXY_TEXT_BYTES_MAX {
        return None;
    }
    let mut words = bytes[..end].split(|&byte| byte == b' ');
    if words.next()? != b"PROXY" {
        return None;
    }
    let family = words.next()?;
    if family == b"UNKNOWN" {
        return Some((consumed, None));
    }
    let words: Vec<&str> = words.map(std::str::from_utf8).collect::<Result<_, _>>().ok()?;
    let [source, destination, source_port, destination_port] = words[..] else {
        return None;
    };
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| port.to_string() == text);
    let (source_port, _) = (port(source_port)?, port(destination_port)?);
    let client = match family {
        b"TCP4" => {
            destination.parse::<Ipv4Addr>().ok()?;
            SocketAddr::from((source.parse::<Ipv4Addr>().ok()?, source_port))
        }
        b"TCP6" => {
            destination.parse::<Ipv6Addr>().ok()?;
            SocketAddr::from((source.parse::<Ipv6Addr>().ok()?, source_port))
        }
        _ => return None,
    };
    Some((consumed, Some(client)))
}

fn binary(bytes: &[u8]) -> Option<(usize, Option<SocketAddr>)> {
    let rest = bytes.strip_prefix(SIGNATURE)?;
    let [command, family, high, low, rest @ ..] = rest else {
        return None;
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    let consumed = 16 + length;
    let addresses = rest.get(..length)?;
    if consumed > PROXY_HEADER_BYTES_MAX {
        return None;
    }
    let port = |at: usize| u16::from_be_bytes([addresses[at], addresses[at + 1]]);
    match (command, family) {
        (0x20, _) => Some((consumed, None)),
        (0x21, 0x10..=0x12) if length >= 12 => {
            let source: [u8; 4] = addresses[..4].try_into().expect("four of twelve");
            let client = SocketAddr::from((source, port(8)));
            Some((consumed, (*family == 0x11).then_some(client)))
        }
        (0x21, 0x20..=0x22) if length >= 36 => {
            let source: [u8; 16] = addresses[..16].try_into().expect("16 of 36");
            let client = SocketAddr::from((source, port(32)));
            Some((consumed, (*family == 0x21).then_some(client)))
        }
        (0x21, 0x30..=0x32) if length >= 216 => Some((consumed, None)),
        (0x21, 0x00..=0x02) => Some((consumed, None)),
        _ => None,
    }
}
