//! A text that lies in its owner where it is short, so that comparing it costs no further cache miss.
//!
//! Owns    the bytes: up to `N` in place, more in a box.
//! Called  by `filters` (a whole filter) and `trie` (one level), whose entries are one cache line each.

pub(super) enum Text<const N: usize> {
    Inline { length: u8, bytes: [u8; N] },
    Boxed(Box<str>),
}

impl<const N: usize> Text<N> {
    pub fn new(text: &str) -> Self {
        const { assert!(N <= u8::MAX as usize) };
        if text.len() > N {
            return Text::Boxed(text.into());
        }
        let mut bytes = [0; N];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Text::Inline {
            length: text.len() as u8,
            bytes,
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Text::Inline { length, bytes } => &bytes[..usize::from(*length)],
            Text::Boxed(text) => text.as_bytes(),
        }
    }

    pub fn as_str(&self) -> &str {
        match self {
            Text::Inline { .. } => std::str::from_utf8(self.as_bytes()).expect("it was copied from a str"),
            Text::Boxed(text) => text,
        }
    }
}
