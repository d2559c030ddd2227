//! Values as an operator writes them: a size, a duration, a port. The same text in the file, the environment and a flag.
//!
//! Called by `raw`: `FromStr` reads a flag or a variable, `Deserialize` a value of the file.

use ipnet::IpNet;
use serde::Deserialize;
use std::net::IpAddr;
use std::{fmt, str::FromStr, time::Duration};

/// A number of bytes: `262144`, `"256 KiB"` (1,024), `"1MB"` (1,000,000).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "Written")]
pub struct Size(pub u64);

const SIZE_UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || {
            format!(
                "`{text}` is no size: give a whole number of bytes, or one with a unit of B, KB, MB, GB, KiB, MiB, GiB"
            )
        };
        let trimmed = text.trim();
        let digits_end = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (digits, unit) = trimmed.split_at(digits_end);
        let unit = unit.trim_start();
        let factor = match unit {
            "" => 1,
            _ => {
                SIZE_UNITS
                    .iter()
                    .find(|(name, _)| name.eq_ignore_ascii_case(unit))
                    .ok_or_else(refused)?
                    .1
            }
        };
        let number: u64 = digits.parse().map_err(|_| refused())?;
        number.checked_mul(factor).map(Size).ok_or_else(refused)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIZE_UNITS[..3]
            .iter()
            .find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor))
        {
            Some((unit, factor)) => write!(f, "{} {unit}", self.0 / factor),
            None => write!(f, "{} B", self.0),
        }
    }
}

/// A length of time with its unit: `"10s"`, `"500ms"`, `"1m 30s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // `humantime` takes a bare "0"; here every value has a unit.
        match humantime::parse_duration(text.trim()) {
            Ok(span) if text.contains(|c: char| c.is_ascii_alphabetic()) => Ok(Span(span)),
            _ => Err(format!(
                "`{text}` is no duration: give numbers with a unit, such as 10s, 500ms or 1m 30s"
            )),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// A length of time after which something ends, or `"never"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Expiry(pub Option<Duration>);

impl FromStr for Expiry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "never" => Ok(Expiry(None)),
            span => match span.parse() {
                Ok(Span(span)) => Ok(Expiry(Some(span))),
                Err(refused) => Err(format!("{refused}, or never")),
            },
        }
    }
}

impl TryFrom<String> for Expiry {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A port to listen on: `1883`, `0` for any free one, `"off"` for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Port(pub Option<u16>);

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "off" => Ok(Port(None)),
            number => match number.parse() {
                Ok(port) => Ok(Port(Some(port))),
                Err(_) => Err(format!(
                    "`{text}` is no port: give 1 to 65535, 0 for any free port, or off"
                )),
            },
        }
    }
}

/// The ports on which a connection begins with the header of a proxy: `"mqtt,wss"`, `["mqtt", "wss"]`, `"all"`, `"none"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Listed")]
pub struct ProxyPorts {
    pub mqtt: bool,
    pub mqtts: bool,
    pub ws: bool,
    pub wss: bool,
}

impl ProxyPorts {
    fn from_names<'a>(names: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let mut ports = ProxyPorts::default();
        let names: Vec<&str> = names.map(str::trim).collect();
        match names[..] {
            ["none"] => return Ok(ports),
            ["all"] => {
                return Ok(ProxyPorts {
                    mqtt: true,
                    mqtts: true,
                    ws: true,
                    wss: true,
                });
            }
            _ => {}
        }
        for name in &names {
            let port = match *name {
                "mqtt" => &mut ports.mqtt,
                "mqtts" => &mut ports.mqtts,
                "ws" => &mut ports.ws,
                "wss" => &mut ports.wss,
                _ => return Err(ProxyPorts::refusal(&names)),
            };
            *port = true;
        }
        match names.is_empty() {
            true => Err(ProxyPorts::refusal(&names)),
            false => Ok(ports),
        }
    }

    fn refusal(names: &[&str]) -> String {
        format!(
            "`{}` is no list of ports: give some of mqtt, mqtts, ws, wss with commas between, or all, or none",
            names.join(",")
        )
    }
}

impl FromStr for ProxyPorts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        ProxyPorts::from_names(text.split(','))
    }
}

impl TryFrom<Listed> for ProxyPorts {
    type Error = String;

    fn try_from(listed: Listed) -> Result<Self, String> {
        ProxyPorts::from_names(listed.items())
    }
}

/// Networks beside the public ones: `"10.0.0.0/8,192.168.1.7"`, or a list in the file; `"any"`, `"none"`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Listed")]
pub enum Networks {
    Any,
    These(Vec<IpNet>),
}

impl Networks {
    fn from_items<'a>(items: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let items: Vec<&str> = items.map(str::trim).collect();
        let network = |item: &&str| match item.parse::<IpAddr>() {
            Ok(address) => Some(IpNet::from(address)),
            Err(_) => item.parse().ok(),
        };
        match items[..] {
            ["any"] => return Ok(Networks::Any),
            ["none"] => return Ok(Networks::These(Vec::new())),
            _ => {}
        }
        match items.iter().map(network).collect::<Option<Vec<_>>>() {
            Some(networks) if !networks.is_empty() => Ok(Networks::These(networks)),
            _ => Err(format!(
                "`{}` is no list of networks: give some, such as 10.0.0.0/8 or 192.168.1.7, with commas between, or any, \
                 or none",
                items.join(",")
            )),
        }
    }
}

impl FromStr for Networks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Networks::from_items(text.split(','))
    }
}

impl TryFrom<Listed> for Networks {
    type Error = String;

    fn try_from(listed: Listed) -> Result<Self, String> {
        Networks::from_items(listed.items())
    }
}

/// The origins of web pages that may connect: `"https://a.example,https://b.example"`, or a list in the file. `"any"` is
/// the empty list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Listed")]
pub struct Origins(pub Vec<String>);

impl Origins {
    fn from_items<'a>(items: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let items: Vec<&str> = items.map(str::trim).collect();
        if items[..] == ["any"] {
            return Ok(Origins(Vec::new()));
        }
        // What an origin looks like is the matter of those who compare it.
        let is_origin = |item: &str| {
            !item.is_empty()
                && item != "any"
                && !item.contains(|c: char| c.is_whitespace() || c.is_control() || c == ',')
        };
        match items.iter().find(|item| !is_origin(item)) {
            None if !items.is_empty() => Ok(Origins(items.into_iter().map(str::to_owned).collect())),
            _ => Err(format!(
                "`{}` is no list of origins: give some, such as https://app.example, with commas between, or any",
                items.join(",")
            )),
        }
    }
}

impl FromStr for Origins {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Origins::from_items(text.split(','))
    }
}

impl TryFrom<Listed> for Origins {
    type Error = String;

    fn try_from(listed: Listed) -> Result<Self, String> {
        Origins::from_items(listed.items())
    }
}

/// A value of the file that is a text with commas, or a list of texts.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text in quotes, or a list of them")]
enum Listed {
    Text(String),
    List(Vec<String>),
}

impl Listed {
    fn items(&self) -> impl Iterator<Item = &str> {
        let (text, list) = match self {
            Listed::Text(text) => (Some(text.split(',')), &[][..]),
            Listed::List(list) => (None, &list[..]),
        };
        text.into_iter().flatten().chain(list.iter().map(String::as_str))
    }
}

/// A value of the file that is a number or a text.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a whole number, or a text in quotes")]
enum Written {
    Number(i64),
    Text(String),
}

impl Written {
    fn parse<T: FromStr<Err = String>>(self) -> Result<T, String> {
        match self {
            Written::Number(number) => number.to_string().parse(),
            Written::Text(text) => text.parse(),
        }
    }
}

impl TryFrom<Written> for Size {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        written.parse()
    }
}

impl TryFrom<Written> for Port {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        written.parse()
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_size_is_a_whole_number_with_a_decimal_or_binary_unit() {
        for (text, bytes) in [
            ("0", 0),
            ("262144", 262_144),
            ("17 B", 17),
            ("1MB", 1_000_000),
            ("1 mb", 1_000_000),
            ("256 KiB", 262_144),
            (" 16MiB ", 16_777_216),
            ("2gib", 2_147_483_648),
            ("3 GB", 3_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in [
            "",
            "KiB",
            "1.5 MiB",
            "-1",
            "+1",
            "1 K",
            "1 KiB 1",
            "1 TiB2",
            "0x10",
            "99999999999999999999",
            "18446744073709551615 KB",
        ] {
            let refused = text.parse::<Size>().unwrap_err();
            assert!(refused.contains(&format!("`{text}` is no size")), "{text}: {refused}");
        }
    }

    #[test]
    fn a_duration_has_a_unit() {
        assert_eq!("10s".parse(), Ok(Span(Duration::from_secs(10))));
        assert_eq!("500ms".parse(), Ok(Span(Duration::from_millis(500))));
        assert_eq!("1m 30s".parse(), Ok(Span(Duration::from_secs(90))));
        for text in ["", "10", "0", "s", "-1s", "1.5", "10 parsecs"] {
            assert!(text.parse::<Span>().unwrap_err().contains("is no duration"), "{text}");
        }
    }

    #[test]
    fn a_port_is_a_number_or_off() {
        assert_eq!("1883".parse(), Ok(Port(Some(1883))));
        assert_eq!("0".parse(), Ok(Port(Some(0))));
        assert_eq!("off".parse(), Ok(Port(None)));
        for text in ["", "65536", "-1", "on", "mqtt"] {
            assert!(text.parse::<Port>().unwrap_err().contains("is no port"), "{text}");
        }
    }

    #[test]
    fn ports_of_proxies_are_named_once_or_all_or_none() {
        let ports = |mqtt, mqtts, ws, wss| ProxyPorts { mqtt, mqtts, ws, wss };
        for (text, expected) in [
            ("none", ports(false, false, false, false)),
            (" all ", ports(true, true, true, true)),
            ("mqtts", ports(false, true, false, false)),
            ("mqtt, wss", ports(true, false, false, true)),
            ("ws,ws", ports(false, false, true, false)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
            assert_eq!(
                ProxyPorts::try_from(Listed::Text(text.to_owned())),
                Ok(expected),
                "{text}"
            );
            let list = text.split(',').map(str::to_owned).collect();
            assert_eq!(ProxyPorts::try_from(Listed::List(list)), Ok(expected), "{text}");
        }
        for text in ["", ",", "mqtt,", "all,mqtt", "none,ws", "http", "MQTT", "1883"] {
            let refused = text.parse::<ProxyPorts>().unwrap_err();
            assert!(
                refused.starts_with(&format!("`{text}` is no list of ports: ")),
                "{refused}"
            );
        }
        assert!(ProxyPorts::try_from(Listed::List(Vec::new())).is_err());
    }

    #[test]
    fn origins_are_listed_or_any() {
        let origins = |list: &[&str]| Origins(list.iter().map(|origin| (*origin).to_owned()).collect());
        assert_eq!("any".parse(), Ok(origins(&[])));
        let two = origins(&["https://a.example", "http://b.example:8080"]);
        assert_eq!("https://a.example, http://b.example:8080".parse(), Ok(two.clone()));
        assert_eq!(Origins::try_from(Listed::List(two.0.clone())), Ok(two));
        assert_eq!("null".parse(), Ok(origins(&["null"])));
        for text in ["", "any,https://a.example", "https://a.example,", "https://a example"] {
            let refused = text.parse::<Origins>().unwrap_err();
            assert!(
                refused.starts_with(&format!("`{text}` is no list of origins: ")),
                "{refused}"
            );
        }
        assert!(Origins::try_from(Listed::List(Vec::new())).is_err());
    }

    proptest! {
        #[test]
        fn a_size_reads_back_as_it_is_shown(bytes in prop_oneof![any::<u64>(), (0u64..5000).prop_map(|n| n * 1024)]) {
            prop_assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }

        #[test]
        fn no_text_makes_a_value_panic(text in "\\PC*") {
            let _ = (text.parse::<Size>(), text.parse::<Span>(), text.parse::<Port>());
            let _ = (text.parse::<ProxyPorts>(), text.parse::<Origins>());
        }
    }
}
