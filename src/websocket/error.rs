//! What a peer can break on its way to MQTT: one variant per rule, each with a sentence that names the section.
//!
//! Called  by `handshake` and `frame` (make them), by the shell (closes the connection and counts the variant).
//! Holds   - `index()` is below `COUNT` and differs for every variant, so counters by reason are a plain array;
//!         - `name()` is the variant in snake_case behind `websocket_`: the label of a counter and of a debug log line.

use std::fmt;

use super::frame::CloseCode;

/// One list of rules per error; names, sentences, order and count cannot drift apart.
macro_rules! rules {
    ($(#[$doc:meta])* $Error:ident { $($variant:ident $name:literal $sentence:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $Error {
            $(#[doc = $sentence] $variant,)*
        }

        impl $Error {
            /// Every rule, in the order of `index()`.
            pub const ALL: &[$Error] = &[$($Error::$variant,)*];
            /// How many rules there are: the length of an array of counters by reason.
            pub const COUNT: usize = Self::ALL.len();

            /// Place of this rule in such an array, below `COUNT`.
            pub const fn index(self) -> usize {
                self as usize
            }

            /// snake_case, for counters and debug logs.
            pub const fn name(self) -> &'static str {
                match self { $($Error::$variant => $name,)* }
            }

            const fn sentence(self) -> &'static str {
                match self { $($Error::$variant => $sentence,)* }
            }
        }

        impl fmt::Display for $Error {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.sentence())
            }
        }

        impl std::error::Error for $Error {}
    };
}

rules! {
    /// Why an opening request was refused. Sections are those of RFC 6455.
    HandshakeError {
        NotHttp "websocket_not_http"
            "the first bytes are not those of an HTTP request";
        BadRequest "websocket_bad_request"
            "the HTTP request is malformed, or lacks what a handshake must have (section 4.2.1)";
        HeadTooLarge "websocket_head_too_large"
            "the head of the HTTP request is too long, or has too many headers";
        Method "websocket_method"
            "the method of the HTTP request is not GET (section 4.2.1)";
        Path "websocket_path"
            "the path of the HTTP request is not /mqtt";
        NoUpgrade "websocket_no_upgrade"
            "the HTTP request asks for no upgrade to WebSocket (section 4.2.1)";
        Version "websocket_version"
            "the version of WebSocket is not 13 (section 4.4)";
        Origin "websocket_origin"
            "the page that wants to connect is of an origin that is not allowed (section 10.2)";
        Subprotocol "websocket_subprotocol"
            "subprotocols are offered, and mqtt is not among them [MQTT-6.0.0-3]";
    }
}

rules! {
    /// The rule a frame broke. Sections are those of RFC 6455.
    FrameError {
        ReservedBits "websocket_reserved_bits"
            "a reserved bit of a frame is set, and no extension gave it a meaning (section 5.2)";
        ReservedOpcode "websocket_reserved_opcode"
            "the opcode of a frame is reserved (section 5.2)";
        Text "websocket_text"
            "a text frame: MQTT rides in binary ones [MQTT-6.0.0-1]";
        ContinuationOfNothing "websocket_continuation_of_nothing"
            "a continuation frame where no message has begun (section 5.4)";
        MessageInsideMessage "websocket_message_inside_message"
            "a message begins before the one in fragments has ended (section 5.4)";
        FragmentedControl "websocket_fragmented_control"
            "a control frame is fragmented (section 5.5)";
        Unmasked "websocket_unmasked"
            "a frame of a client is not masked (section 5.1)";
        LongControl "websocket_long_control"
            "the payload of a control frame is longer than 125 bytes (section 5.5)";
        LengthNotMinimal "websocket_length_not_minimal"
            "a payload length is written with more bytes than it needs (section 5.2)";
        LengthTopBit "websocket_length_top_bit"
            "the top bit of a 64-bit payload length is set (section 5.2)";
        FrameTooLarge "websocket_frame_too_large"
            "a frame is larger than any MQTT packet can be";
        CloseLength "websocket_close_length"
            "a close frame of one byte: half a code (section 5.5.1)";
        CloseCode "websocket_close_code"
            "the code of a close frame must not be sent (section 7.4)";
        CloseReason "websocket_close_reason"
            "the reason of a close frame is not well-formed UTF-8 (section 5.5.1)";
    }
}

impl FrameError {
    /// What the close frame says that answers it (section 7.4.1).
    pub const fn close_code(self) -> CloseCode {
        match self {
            FrameError::Text => CloseCode::Unsupported,
            FrameError::FrameTooLarge => CloseCode::TooBig,
            FrameError::CloseReason => CloseCode::InvalidPayload,
            _ => CloseCode::ProtocolError,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_dense_and_in_the_order_of_all() {
        for (index, error) in HandshakeError::ALL.iter().enumerate() {
            assert_eq!(error.index(), index);
        }
        for (index, error) in FrameError::ALL.iter().enumerate() {
            assert_eq!(error.index(), index);
        }
    }

    #[test]
    fn names_are_the_variants_in_snake_case_and_differ() {
        let handshake = HandshakeError::ALL.iter().map(|e| (format!("{e:?}"), e.name()));
        let frame = FrameError::ALL.iter().map(|e| (format!("{e:?}"), e.name()));
        let mut names = std::collections::HashSet::new();
        for (variant, name) in handshake.chain(frame) {
            let mut expected = String::from("websocket");
            for character in variant.chars() {
                if character.is_uppercase() {
                    expected.push('_');
                }
                expected.extend(character.to_lowercase());
            }
            assert_eq!(name, expected);
            assert!(names.insert(name), "{name} twice");
        }
    }
}
