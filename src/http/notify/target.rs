//! Where a webhook may go: whoever writes a URL into an event must not reach what only this host can reach.
//!
//! Owns    the rule on addresses, and the settings that widen it.
//! Called  by [`webhook`](super::webhook) for the host of a URL and for every address that it has; by [`desk`](crate::http::desk)
//!         for the shape of a URL.
//! Holds   - without `--webhook-allow`, only addresses that anybody on the internet can reach are targets;
//!         - an address that has another one within (mapped, NAT64) is judged by that one;
//!         - one refused address of a host refuses the host: which one is connected to is not ours to choose.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use reqwest::Url;

/// `--webhook-allow`: what is a target although it is not public.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allow {
    Any,
    These(Vec<IpNet>),
}

impl Default for Allow {
    fn default() -> Allow {
        Allow::These(Vec::new())
    }
}

impl Allow {
    pub fn allows(&self, address: IpAddr) -> bool {
        let meant = meant(address);
        let is_within = |network: &IpNet| network.contains(&meant) || network.contains(&address);
        match self {
            Allow::Any => true,
            Allow::These(networks) => is_public(meant) || networks.iter().any(is_within),
        }
    }
}

/// A target that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(pub IpAddr);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is no public address, and --webhook-allow does not name it",
            self.0
        )
    }
}

impl std::error::Error for Refused {}

/// A text that is no URL of a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadUrl;

/// The URL of a webhook: `http` or `https`, with a host.
pub fn parse(text: &str) -> Result<Url, BadUrl> {
    let url = Url::parse(text).map_err(|_| BadUrl)?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(url),
        _ => Err(BadUrl),
    }
}

/// The address in place of a host's name. (The URL was normalised: `0x7f.1` is `127.0.0.1` in it.)
pub fn literal(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    address.unwrap_or(host).parse().ok()
}

/// The address that packets for this one arrive at.
fn meant(address: IpAddr) -> IpAddr {
    const NAT64: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) if NAT64.contains(&v6) => {
            let [.., a, b, c, d] = v6.octets();
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
    }
}

const fn v4(a: u8, b: u8, c: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), prefix)
}

const fn v6(a: u16, b: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), prefix)
}

/// Not for the internet: the special-purpose registry of IANA, and multicast.
const SPECIAL_V4: [Ipv4Net; 15] = [
    v4(0, 0, 0, 8),       // this network
    v4(10, 0, 0, 8),      // private
    v4(100, 64, 0, 10),   // shared with the carrier
    v4(127, 0, 0, 8),     // loopback
    v4(169, 254, 0, 16),  // link-local, metadata of clouds
    v4(172, 16, 0, 12),   // private
    v4(192, 0, 0, 24),    // protocol assignments
    v4(192, 0, 2, 24),    // documentation
    v4(192, 88, 99, 24),  // 6to4 relays
    v4(192, 168, 0, 16),  // private
    v4(198, 18, 0, 15),   // benchmarks
    v4(198, 51, 100, 24), // documentation
    v4(203, 0, 113, 24),  // documentation
    v4(224, 0, 0, 4),     // multicast
    v4(240, 0, 0, 4),     // reserved, broadcast
];

/// All that is global unicast now: loopback, unique local, link-local, multicast and what is reserved lie outside.
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 3);

const SPECIAL_V6: [Ipv6Net; 4] = [
    v6(0x2001, 0, 23),     // protocol assignments, Teredo among them
    v6(0x2001, 0xdb8, 32), // documentation
    v6(0x2002, 0, 16),     // 6to4: has any IPv4 address within
    v6(0x3fff, 0, 20),     // documentation
];

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !SPECIAL_V4.iter().any(|network| network.contains(&address)),
        IpAddr::V6(address) => {
            GLOBAL_V6.contains(&address) && !SPECIAL_V6.iter().any(|network| network.contains(&address))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(allow: &[&str], address: &str) -> bool {
        let networks = allow.iter().map(|network| network.parse().unwrap()).collect();
        Allow::These(networks).allows(address.parse().unwrap())
    }

    #[test]
    fn only_addresses_of_the_internet_are_targets_by_themselves() {
        for address in [
            "1.1.1.1",
            "93.184.216.34",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.1",
            "169.253.255.255",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700:4700::1111",
            "2a00:1450::1",
            "2001:4860:4860::8888",
            "2001:200::1",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
        ] {
            assert!(allows(&[], address), "{address}");
        }
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0:127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:10::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "2002:101:101::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!allows(&[], address), "{address}");
            assert!(Allow::Any.allows(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn networks_are_allowed_by_name_in_whatever_way_their_addresses_are_written() {
        let allow = ["10.1.0.0/16", "127.0.0.1/32", "fd00::/8", "2001:db8::7/128"];
        for address in [
            "10.1.2.3",
            "127.0.0.1",
            "::ffff:127.0.0.1",
            "64:ff9b::a01:203",
            "fd12::1",
            "2001:db8::7",
            "1.1.1.1",
        ] {
            assert!(allows(&allow, address), "{address}");
        }
        for address in ["10.2.0.1", "127.0.0.2", "fc00::1", "2001:db8::8", "::1"] {
            assert!(!allows(&allow, address), "{address}");
        }
        assert!(allows(&["::ffff:0:0/96"], "::ffff:127.0.0.1"), "as it is written");
    }

    #[test]
    fn a_target_is_http_or_https_and_an_address_is_known_however_it_is_written() {
        for good in [
            "http://example.org",
            "https://u:p@example.org:8443/a?b=c#d",
            "HTTP://EXAMPLE.ORG/",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "example.org",
            "//example.org/",
            "ftp://example.org/",
            "file:///etc/passwd",
            "gopher://127.0.0.1/",
            "javascript:alert(1)",
            "http://",
            "http:///path",
            "http://exa mple.org/",
            "http://[::1",
        ] {
            assert!(bad == "http:///path" || parse(bad).is_err(), "{bad}");
        }
        // It is "path" that is the host here; a URL has a host or none, nothing between.
        assert_eq!(parse("http:///path").unwrap().host_str(), Some("path"));
        for (url, address) in [
            ("http://127.0.0.1/", Some("127.0.0.1")),
            ("http://0x7f.1/", Some("127.0.0.1")),
            ("http://2130706433/", Some("127.0.0.1")),
            ("http://0177.0.0.1/", Some("127.0.0.1")),
            ("http://127.1:80/", Some("127.0.0.1")),
            ("http://[::1]:8080/", Some("::1")),
            ("http://[::ffff:7f00:1]/", Some("::ffff:127.0.0.1")),
            ("http://①②⑦.0.0.1/", Some("127.0.0.1")),
            ("http://localhost/", None),
            ("http://127.0.0.1.example.org/", None),
        ] {
            let known = literal(&parse(url).unwrap());
            assert_eq!(known, address.map(|address| address.parse().unwrap()), "{url}");
        }
    }
}
