//! An account: one tenant of the platform, with its two tokens.
//!
//! Owns    [`Account`], which is on disk as it stands here (MessagePack with names), and the shapes of user id and token.
//! Called  by `http` (which owns the accounts of a run), by `skein account`, and by [`access`](super::access), which makes of
//!         them the snapshot that the cores hold.
//! Holds   - tokens are shown through the User service, so they are kept as they are: the file's mode protects them;
//!         - no token is ever printed by `Debug`.

use std::fmt;

use subtle::ConstantTimeEq;

use super::access::AccountId;
use super::quota::OwnQuotas;

/// A new account's devices, and bytes of its datapoints, unless the operator says otherwise.
pub use crate::limits::{ACCOUNT_DEVICES_MAX, ACCOUNT_STORAGE_BYTES_MAX};

/// 128 random bits as 32 hexadecimal digits, upper case.
#[derive(Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Token([u8; Token::LEN]);

impl Token {
    pub const LEN: usize = 32;
    /// No account has it: what is compared with where there is no account.
    pub const NOBODYS: Token = Token([b'-'; Token::LEN]);

    pub fn from_random(bits: [u8; 16]) -> Token {
        let mut text = [0; Token::LEN];
        hex::encode_to_slice(bits, &mut text).expect("two digits a byte");
        text.make_ascii_uppercase();
        Token(text)
    }

    /// A text that has the shape of a token.
    pub fn parse(text: &str) -> Option<Token> {
        let bytes: [u8; Token::LEN] = text.as_bytes().try_into().ok()?;
        let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'A'..=b'F');
        bytes.iter().all(is_digit).then_some(Token(bytes))
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("hexadecimal digits")
    }

    /// Whether `text` is this token, in a time that does not depend on where they differ. By words, since every message is
    /// asked whose its topic is.
    #[inline]
    pub fn is(&self, text: &[u8]) -> bool {
        match text.try_into() {
            Ok(text) => words(&self.0).ct_eq(&words(text)).into(),
            Err(_) => false,
        }
    }

    /// For logs: enough to tell two apart, too little to use.
    pub fn masked(&self) -> impl fmt::Display + use<> {
        let first = String::from_utf8_lossy(&self.0[..4]).into_owned();
        format!("{first}…")
    }
}

fn words(text: &[u8; Token::LEN]) -> [u64; Token::LEN / 8] {
    let (words, _) = text.as_chunks();
    std::array::from_fn(|at| u64::from_ne_bytes(words[at]))
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.masked())
    }
}

impl TryFrom<String> for Token {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Token, Self::Error> {
        Token::parse(&text).ok_or("no token")
    }
}

impl From<Token> for String {
    fn from(token: Token) -> String {
        token.as_str().to_owned()
    }
}

/// `U` and six digits.
pub fn is_user_id(text: &str) -> bool {
    text.len() == 7 && text.starts_with('U') && text[1..].bytes().all(|byte| byte.is_ascii_digit())
}

/// One account, whole.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Account {
    pub id: AccountId,
    /// `U004217`: the MQTT user name.
    pub user_id: Box<str>,
    pub api_token: Token,
    pub device_token: Token,
    pub is_suspended: bool,
    pub email1: String,
    pub email2: String,
    pub organization: String,
    /// IANA zone name.
    pub locale: String,
    pub user_alias: String,
    /// New devices are mapped to this channel.
    pub default_channel: Option<super::channel::ChannelId>,
    pub devices_max: u32,
    pub storage_bytes_max: u64,
    /// The id of the next event.
    pub next_event: u32,
    /// Milliseconds of Unix time.
    pub created_ms: u64,
    /// Not there in older stores, nor where it says nothing.
    #[serde(default, skip_serializing_if = "OwnQuotas::is_empty")]
    pub quotas: OwnQuotas,
}

impl Account {
    pub fn new(id: AccountId, user_id: &str, api_token: Token, device_token: Token, created_ms: u64) -> Account {
        assert!(is_user_id(user_id), "checked by whoever chose it");
        Account {
            id,
            user_id: user_id.into(),
            api_token,
            device_token,
            is_suspended: false,
            email1: String::new(),
            email2: String::new(),
            organization: String::new(),
            locale: "UTC".to_owned(),
            user_alias: String::new(),
            default_channel: None,
            devices_max: ACCOUNT_DEVICES_MAX,
            storage_bytes_max: ACCOUNT_STORAGE_BYTES_MAX,
            next_event: 1,
            created_ms,
            quotas: OwnQuotas::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_128_bits_in_upper_case_and_compares_exactly() {
        let token = Token::from_random([0xab; 16]);
        assert_eq!(token.as_str(), "AB".repeat(16));
        assert_eq!(Token::parse(token.as_str()), Some(token));
        assert!(token.is(token.as_str().as_bytes()));
        for other in ["AB".repeat(15), "ab".repeat(16), "AB".repeat(17), "AG".repeat(16)] {
            assert!(!token.is(other.as_bytes()));
            assert_eq!(Token::parse(&other), None);
        }
        for at in 0..Token::LEN {
            let mut other = token.as_str().to_owned().into_bytes();
            other[at] ^= 1;
            assert!(!token.is(&other), "digit {at} differs");
        }
    }

    #[test]
    fn no_token_is_printed() {
        let token = Token::from_random([0x5c; 16]);
        let account = Account::new(AccountId(1), "U000001", token, token, 0);
        assert!(!format!("{account:?} {token:?} {}", token.masked()).contains(token.as_str()));
    }
}
