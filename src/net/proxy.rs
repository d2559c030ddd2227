//! The PROXY protocol, versions 1 and 2: what a proxy says of its client before the client's own bytes.
//! <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>
//!
//! Owns    no state: bytes in, a judgement out.
//! Called  by `transport` with the first bytes of a connection whose port expects a header.
//! Holds   - a header is judged by as few bytes as can tell: a client that speaks MQTT, TLS or HTTP without one is
//!           refused by its first bytes, never waited for;
//!         - a header is at most [`PROXY_HEADER_BYTES_MAX`] long; a longer one is refused by the length it announces;
//!         - `ppp` reads whole headers only: of partial ones it refuses some (`PROXY TCP4 1.2.3.4 1.2.3.4 1 `) and waits
//!           forever for others (`PROXY UNKNOWN` and five words), and LOCAL with addresses missing it refuses, which the
//!           specification does not.
//!
//! The fields that follow the addresses (TLVs), their checksum among them, are skipped unread.

use std::net::SocketAddr;

use ppp::{v1, v2};

use crate::limits::{PROXY_HEADER_BYTES_MAX, PROXY_TEXT_BYTES_MAX};

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// The beginning of a header. Never said of [`PROXY_HEADER_BYTES_MAX`] bytes or more.
    Incomplete,
    /// A header of so many bytes. No client (LOCAL, UNKNOWN, UNSPEC, a Unix socket, UDP): the socket's own address counts.
    Header {
        consumed: usize,
        client: Option<SocketAddr>,
    },
    /// No header, whatever comes next.
    Malformed,
}

/// The header that the first bytes of a connection are, or may become.
pub fn proxy_header(bytes: &[u8]) -> Proxy {
    match bytes.first() {
        None => Proxy::Incomplete,
        Some(b'P') => text_header(bytes),
        Some(b'\r') => binary_header(bytes),
        Some(_) => Proxy::Malformed,
    }
}

/// Version 1: one line.
fn text_header(bytes: &[u8]) -> Proxy {
    let head = &bytes[..bytes.len().min(PROXY_TEXT_BYTES_MAX)];
    let return_at = head.iter().position(|byte| *byte == b'\r');
    let text = &head[..return_at.unwrap_or(head.len())];
    let consumed = text.len() + 2;
    if consumed > PROXY_TEXT_BYTES_MAX {
        return Proxy::Malformed;
    }
    let is_whole = match head.get(text.len() + 1) {
        Some(b'\n') => true,
        Some(_) => return Proxy::Malformed,
        None => false,
    };

    let (is_plausible, has_client) = if let Some(rest) = text.strip_prefix(b"PROXY UNKNOWN") {
        // Whatever stands before the end of the line is to be ignored.
        (rest.first().is_none_or(|byte| *byte == b' '), false)
    } else if let Some(rest) = text.strip_prefix(b"PROXY TCP4 ") {
        let is_plain = |byte: &u8| matches!(byte, b'0'..=b'9' | b'.' | b' ');
        (rest.iter().all(is_plain), true)
    } else if let Some(rest) = text.strip_prefix(b"PROXY TCP6 ") {
        let is_plain = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.' | b' ');
        (rest.iter().all(is_plain), true)
    } else {
        let starts: [&[u8]; 3] = [b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN"];
        (
            return_at.is_none() && starts.iter().any(|start| start.starts_with(text)),
            true,
        )
    };
    match (is_plausible, is_whole, has_client) {
        (false, _, _) => Proxy::Malformed,
        (true, false, _) => Proxy::Incomplete,
        (true, true, false) => Proxy::Header { consumed, client: None },
        (true, true, true) => match v1::Header::try_from(&head[..consumed]) {
            Ok(v1::Header { addresses, .. }) => Proxy::Header {
                consumed,
                client: match addresses {
                    v1::Addresses::Tcp4(ip) => Some((ip.source_address, ip.source_port).into()),
                    v1::Addresses::Tcp6(ip) => Some((ip.source_address, ip.source_port).into()),
                    v1::Addresses::Unknown => None,
                },
            },
            Err(_) => Proxy::Malformed,
        },
    }
}

/// Where version 2 keeps its fields.
const COMMAND_AT: usize = v2::PROTOCOL_PREFIX.len();
const FAMILY_AT: usize = COMMAND_AT + 1;
const LENGTH_AT: usize = FAMILY_AT + 1;
const HEAD_BYTES: usize = LENGTH_AT + 2;

/// Version 2: a signature, version and command, family and transport, length; then as many bytes.
fn binary_header(bytes: &[u8]) -> Proxy {
    let signature_bytes = bytes.len().min(COMMAND_AT);
    if bytes[..signature_bytes] != v2::PROTOCOL_PREFIX[..signature_bytes] {
        return Proxy::Malformed;
    }
    let is_local = match bytes.get(COMMAND_AT) {
        None => return Proxy::Incomplete,
        Some(0x20) => true,
        Some(0x21) => false,
        Some(_) => return Proxy::Malformed,
    };
    // With LOCAL the family is ignored; otherwise a value that is not assigned must end the connection.
    let is_assigned = |family: &u8| family >> 4 <= 3 && family & 0x0F <= 2;
    if bytes
        .get(FAMILY_AT)
        .is_some_and(|family| !is_local && !is_assigned(family))
    {
        return Proxy::Malformed;
    }
    let Some(length) = bytes.get(LENGTH_AT..HEAD_BYTES) else {
        return Proxy::Incomplete;
    };
    let consumed = HEAD_BYTES + usize::from(u16::from_be_bytes([length[0], length[1]]));
    if consumed > PROXY_HEADER_BYTES_MAX {
        return Proxy::Malformed;
    }
    if is_local {
        return match bytes.len() < consumed {
            true => Proxy::Incomplete,
            false => Proxy::Header { consumed, client: None },
        };
    }
    match v2::Header::try_from(bytes) {
        Ok(v2::Header {
            protocol, addresses, ..
        }) => Proxy::Header {
            consumed,
            client: match (protocol, addresses) {
                (v2::Protocol::Stream, v2::Addresses::IPv4(ip)) => Some((ip.source_address, ip.source_port).into()),
                (v2::Protocol::Stream, v2::Addresses::IPv6(ip)) => Some((ip.source_address, ip.source_port).into()),
                _ => None,
            },
        },
        Err(v2::ParseError::Incomplete(_) | v2::ParseError::Partial(..)) => Proxy::Incomplete,
        Err(_) => Proxy::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    fn header(consumed: usize, client: &str) -> Proxy {
        Proxy::Header {
            consumed,
            client: Some(client.parse().unwrap()),
        }
    }

    fn nobody(consumed: usize) -> Proxy {
        Proxy::Header { consumed, client: None }
    }

    /// A header of version 2.
    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        bytes.extend([command, family]);
        bytes.extend((rest.len() as u16).to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    const IPV4: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0xDB, 0x01, 0x07, 0x5B];

    #[test]
    fn a_line_of_version_1_names_the_client() {
        for (line, client) in [
            ("PROXY TCP4 192.0.2.7 198.51.100.1 56065 1883\r\n", "192.0.2.7:56065"),
            (
                "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
                "255.255.255.255:65535",
            ),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 0 0\r\n", "1.2.3.4:0"),
            ("PROXY TCP6 2001:DB8::7 ::1 56065 1883\r\n", "[2001:db8::7]:56065"),
            (
                "PROXY TCP6 ::ffff:192.0.2.7 ::1 56065 1883\r\n",
                "[::ffff:192.0.2.7]:56065",
            ),
            (
                "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
                "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
            ),
        ] {
            assert_eq!(proxy_header(line.as_bytes()), header(line.len(), client), "{line:?}");
        }
    }

    #[test]
    fn a_line_of_version_1_without_addresses_says_nothing_of_the_client() {
        for line in [
            "PROXY UNKNOWN\r\n",
            "PROXY UNKNOWN \r\n",
            "PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n",
            "PROXY UNKNOWN a b c d e f g\r\n",
            "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
        ] {
            assert_eq!(proxy_header(line.as_bytes()), nobody(line.len()), "{line:?}");
        }
        assert_eq!(proxy_header(b"PROXY UNKNOWN \xFF\x00\r\n\x10"), nobody(18));
    }

    #[test]
    fn what_no_line_of_version_1_can_be_is_refused_by_its_first_wrong_byte() {
        for line in [
            "PO",
            "PU",
            "PROXY  ",
            "PROXY T4",
            "PROXY TCP5",
            "PROXY t",
            "PROXY UNKNOWNS",
            "PROXY\r",
            "PROXY TCP4\r",
            "PROXY TCP4 1.2.3.4,",
            "PROXY TCP4 a",
            "PROXY TCP4 1.2.3.4\n",
            "PROXY TCP6 g",
            "PROXY TCP4 1.2.3.4 1.2.3.4 +",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\r",
        ] {
            let bytes = line.as_bytes();
            assert_eq!(proxy_header(bytes), Proxy::Malformed, "{line:?}");
            assert_eq!(proxy_header(&bytes[..bytes.len() - 1]), Proxy::Incomplete, "{line:?}");
        }
        for line in [
            "PROXY TCP4 \r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
            "PROXY TCP4 1.2.3.4  1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
            "PROXY TCP4 1.2.3.04 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n",
        ] {
            assert_eq!(proxy_header(line.as_bytes()), Proxy::Malformed, "{line:?}");
        }
    }

    #[test]
    fn a_line_of_version_1_has_107_bytes_at_most() {
        let line = |bytes: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(bytes - 16));
        assert_eq!(proxy_header(line(107).as_bytes()), nobody(107));
        assert_eq!(proxy_header(line(108).as_bytes()), Proxy::Malformed);
        assert_eq!(proxy_header(&line(200).as_bytes()[..105]), Proxy::Incomplete);
        assert_eq!(proxy_header(&line(200).as_bytes()[..106]), Proxy::Malformed);
    }

    #[test]
    fn a_header_of_version_2_names_the_client() {
        let bytes = binary(0x21, 0x11, &IPV4);
        assert_eq!(proxy_header(&bytes), header(28, "192.0.2.7:56065"));
        let mut rest = IPV4.to_vec();
        rest.extend([0x04, 0, 2, 9, 9, 0x03, 0, 4, 1, 2, 3, 4, 0xEE]);
        assert_eq!(
            proxy_header(&binary(0x21, 0x11, &rest)),
            header(41, "192.0.2.7:56065"),
            "fields follow"
        );
        let mut rest = [0; 36];
        rest[..2].copy_from_slice(&[0x20, 0x01]);
        rest[15] = 7;
        rest[32..34].copy_from_slice(&1883u16.to_be_bytes());
        assert_eq!(proxy_header(&binary(0x21, 0x21, &rest)), header(52, "[2001::7]:1883"));
    }

    #[test]
    fn a_header_of_version_2_without_a_tcp_client_says_nothing_of_it() {
        for (command, family, rest) in [
            (0x20, 0x00, &[][..]),
            (0x20, 0x11, &IPV4),
            (0x20, 0x11, &[]),
            (0x20, 0xFF, &[1, 2, 3]),
            (0x21, 0x00, &[]),
            (0x21, 0x00, &[1, 2, 3]),
            (0x21, 0x01, &IPV4),
            (0x21, 0x12, &IPV4),
            (0x21, 0x10, &IPV4),
            (0x21, 0x31, &[7; 216]),
            (0x21, 0x32, &[7; 220]),
        ] {
            let bytes = binary(command, family, rest);
            assert_eq!(
                proxy_header(&bytes),
                nobody(bytes.len()),
                "{command:x} {family:x} {rest:?}"
            );
        }
    }

    #[test]
    fn what_no_header_of_version_2_can_be_is_refused_by_its_first_wrong_byte() {
        let good = binary(0x21, 0x11, &IPV4);
        for (at, byte) in [
            (1, b'\r'),
            (11, b'\r'),
            (12, 0x11),
            (12, 0x22),
            (13, 0x41),
            (13, 0x13),
            (15, 11),
        ] {
            let mut bytes = good.clone();
            bytes[at] = byte;
            assert_eq!(proxy_header(&bytes[..=at]), Proxy::Malformed, "{at}: {byte:x}");
            assert_eq!(proxy_header(&bytes[..at]), Proxy::Incomplete, "{at}: {byte:x}");
        }
        let longest = binary(0x21, 0x11, &[1; PROXY_HEADER_BYTES_MAX - 16]);
        assert!(matches!(proxy_header(&longest), Proxy::Header { consumed, .. } if consumed == PROXY_HEADER_BYTES_MAX));
        for command in [0x20, 0x21] {
            let too_long = binary(command, 0x11, &[1; PROXY_HEADER_BYTES_MAX - 15]);
            assert_eq!(proxy_header(&too_long[..16]), Proxy::Malformed);
        }
    }

    #[test]
    fn a_client_that_sends_no_header_is_refused_by_its_first_byte() {
        for bytes in [&b"\x10"[..], b"\x16", b"G", b"\n", b"\0", b"p"] {
            assert_eq!(proxy_header(bytes), Proxy::Malformed);
        }
        assert_eq!(proxy_header(b""), Proxy::Incomplete);
    }

    /// A valid header and the client it names.
    fn valid() -> impl Strategy<Value = (Vec<u8>, Option<SocketAddr>)> {
        let line = |(from, to): (SocketAddr, SocketAddr)| {
            let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
            let line = format!(
                "PROXY {family} {} {} {} {}\r\n",
                from.ip(),
                to.ip(),
                from.port(),
                to.port()
            );
            (line.into_bytes(), Some(from))
        };
        let packed = |((from, to), fields): ((SocketAddr, SocketAddr), Vec<u8>)| {
            let mut rest = Vec::new();
            for address in [from.ip(), to.ip()] {
                match address {
                    IpAddr::V4(ip) => rest.extend(ip.octets()),
                    IpAddr::V6(ip) => rest.extend(ip.octets()),
                }
            }
            rest.extend(from.port().to_be_bytes());
            rest.extend(to.port().to_be_bytes());
            rest.extend(fields);
            (
                binary(0x21, if from.is_ipv4() { 0x11 } else { 0x21 }, &rest),
                Some(from),
            )
        };
        let v4 = || (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| (Ipv4Addr::from(ip), port).into());
        let v6 = || (any::<[u8; 16]>(), any::<u16>()).prop_map(|(ip, port)| (Ipv6Addr::from(ip), port).into());
        let pair = || prop_oneof![(v4(), v4()), (v6(), v6())];
        let fields = || proptest::collection::vec(any::<u8>(), 0..300);
        prop_oneof![
            pair().prop_map(line),
            "[^\r]{0,20}".prop_map(|words| (format!("PROXY UNKNOWN {words}\r\n").into_bytes(), None)),
            (pair(), fields()).prop_map(packed),
            (any::<u8>(), fields()).prop_map(|(family, fields)| (binary(0x20, family, &fields), None)),
        ]
    }

    proptest! {
        #[test]
        fn a_valid_header_is_waited_for_and_consumed_exactly(
            (bytes, client) in valid(),
            after in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            for end in 0..bytes.len() {
                prop_assert_eq!(proxy_header(&bytes[..end]), Proxy::Incomplete, "{} bytes", end);
            }
            let consumed = bytes.len();
            let mut bytes = bytes;
            bytes.extend(after);
            prop_assert_eq!(proxy_header(&bytes), Proxy::Header { consumed, client });
        }

        #[test]
        fn no_bytes_panic_or_are_waited_for_too_long(
            start in proptest::sample::select(vec![
                &b""[..], b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN", b"\r\n\r\n\0\r\nQUIT\n",
                b"\r\n\r\n\0\r\nQUIT\n\x21", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00",
            ]),
            rest in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..700),
                "[0-9a-f.: \r\n]{0,120}".prop_map(String::into_bytes),
            ],
        ) {
            let bytes = [start, &rest].concat();
            match proxy_header(&bytes) {
                Proxy::Incomplete => prop_assert!(bytes.len() < PROXY_HEADER_BYTES_MAX),
                Proxy::Header { consumed, .. } => prop_assert!(consumed <= bytes.len().min(PROXY_HEADER_BYTES_MAX)),
                Proxy::Malformed => {}
            }
        }
    }
}
