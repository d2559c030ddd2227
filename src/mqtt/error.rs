//! What a peer can break: one variant per rule, each with a sentence that names the statement.
//!
//! Called  by every reader of layer 0 (makes them), by the shell (closes the connection and counts the variant).
//! Holds   - `index()` is below `COUNT` and differs for every variant, so counters by reason are a plain array;
//!         - `name()` is the variant in snake_case: the label of a counter and of a debug log line.

use std::fmt;

/// The one list of rules; names, sentences, order and count cannot drift apart.
macro_rules! rules {
    ($($variant:ident $name:literal $sentence:literal;)*) => {
        /// The rule a packet broke. The connection is closed with nothing sent.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DecodeError {
            $(#[doc = $sentence] $variant,)*
        }

        impl DecodeError {
            /// Every rule, in the order of [`DecodeError::index`].
            pub const ALL: &[DecodeError] = &[$(DecodeError::$variant,)*];

            /// snake_case, for counters and debug logs.
            pub const fn name(self) -> &'static str {
                match self { $(DecodeError::$variant => $name,)* }
            }

            const fn sentence(self) -> &'static str {
                match self { $(DecodeError::$variant => $sentence,)* }
            }
        }
    };
}

rules! {
    // Framing, section 2.2.
    RemainingLength "remaining_length"
        "remaining length of more than four bytes [MQTT-4.8.0-1]";
    PacketTooLarge "packet_too_large"
        "the packet is larger than this broker accepts (--max-packet)";
    ReservedPacketType "reserved_packet_type"
        "packet types 0 and 15 are reserved (section 2.2.1) [MQTT-4.8.0-1]";
    ServerOnlyPacket "server_only_packet"
        "a Client sent a packet that only a Server sends (section 2.2.1) [MQTT-4.8.0-1]";
    ClientOnlyPacket "client_only_packet"
        "a Server sent a packet that only a Client sends (section 2.2.1) [MQTT-4.8.0-1]";
    FixedHeaderFlags "fixed_header_flags"
        "reserved flags of the fixed header are set [MQTT-2.2.2-2]";
    BodyTooShort "body_too_short"
        "the packet ends before its fields do (section 2.2.3) [MQTT-4.8.0-1]";
    TrailingBytes "trailing_bytes"
        "the packet goes on after its last field (section 2.2.3) [MQTT-4.8.0-1]";
    // Strings and identifiers, sections 1.5.3 and 2.3.1.
    IllFormedUtf8 "ill_formed_utf8"
        "a string is not well-formed UTF-8 [MQTT-1.5.3-1]";
    NulCharacter "nul_character"
        "a string contains U+0000 [MQTT-1.5.3-2] [MQTT-4.7.3-2]";
    PacketIdZero "packet_id_zero"
        "the Packet Identifier is zero [MQTT-2.3.1-1]";
    // CONNECT, section 3.1.
    FirstPacketNotConnect "first_packet_not_connect"
        "the first packet of a connection is not CONNECT [MQTT-3.1.0-1]";
    SecondConnect "second_connect"
        "a second CONNECT on one connection [MQTT-3.1.0-2]";
    ProtocolName "protocol_name"
        "the protocol name is neither MQTT nor MQIsdp [MQTT-3.1.2-1]";
    ConnectReservedFlag "connect_reserved_flag"
        "bit 0 of the connect flags is set [MQTT-3.1.2-3]";
    WillFlagsWithoutWill "will_flags_without_will"
        "Will QoS or Will Retain without Will Flag [MQTT-3.1.2-11] [MQTT-3.1.2-13] [MQTT-3.1.2-15]";
    WillQoS "will_qos"
        "Will QoS is 3 [MQTT-3.1.2-14]";
    PasswordWithoutUserName "password_without_user_name"
        "the password flag without the user name flag [MQTT-3.1.2-22]";
    // PUBLISH and its acknowledgements, sections 3.3 and 3.6.
    PublishQoS "publish_qos"
        "both QoS bits of a PUBLISH are set [MQTT-3.3.1-4]";
    DupAtQoS0 "dup_at_qos0"
        "DUP on a PUBLISH of QoS 0 [MQTT-3.3.1-2]";
    EmptyTopicName "empty_topic_name"
        "the Topic Name is empty [MQTT-4.7.3-1]";
    WildcardInTopicName "wildcard_in_topic_name"
        "the Topic Name contains a wildcard [MQTT-3.3.2-2] [MQTT-4.7.1-1]";
    TopicTooLong "topic_too_long"
        "a Topic Name or Topic Filter of more than 65,535 bytes [MQTT-4.7.3-3]";
    PubRelFlags "pubrel_flags"
        "the flags of PUBREL are not 2 [MQTT-3.6.1-1]";
    // SUBSCRIBE, UNSUBSCRIBE, DISCONNECT, sections 3.8, 3.10 and 3.14.
    SubscribeFlags "subscribe_flags"
        "the flags of SUBSCRIBE are not 2 [MQTT-3.8.1-1]";
    SubscribeWithoutFilter "subscribe_without_filter"
        "SUBSCRIBE without a Topic Filter [MQTT-3.8.3-3]";
    RequestedQoS "requested_qos"
        "a requested QoS of SUBSCRIBE is not 0, 1 or 2 [MQTT-3.8.3-4]";
    UnsubscribeFlags "unsubscribe_flags"
        "the flags of UNSUBSCRIBE are not 2 [MQTT-3.10.1-1]";
    UnsubscribeWithoutFilter "unsubscribe_without_filter"
        "UNSUBSCRIBE without a Topic Filter [MQTT-3.10.3-2]";
    EmptyTopicFilter "empty_topic_filter"
        "a Topic Filter is empty [MQTT-4.7.3-1]";
    MultiLevelWildcard "multi_level_wildcard"
        "# in a Topic Filter is not a whole last level [MQTT-4.7.1-2]";
    SingleLevelWildcard "single_level_wildcard"
        "+ in a Topic Filter is not a whole level [MQTT-4.7.1-3]";
    DisconnectFlags "disconnect_flags"
        "the flags of DISCONNECT are not 0 [MQTT-3.14.1-1]";
    // What a load generator may find in a broker's answers, sections 3.2 and 3.9.
    ConnAckFlags "connack_flags"
        "reserved connect acknowledge flags are set, or a Session is said to be present with a refusal (section 3.2.2)";
    ConnAckReturnCode "connack_return_code"
        "the CONNACK return code is above 5 (section 3.2.2.3)";
    SubAckReturnCode "suback_return_code"
        "a SUBACK return code is not 0, 1, 2 or 0x80 [MQTT-3.9.3-2]";
    SubAckWithoutCode "suback_without_code"
        "SUBACK without a return code [MQTT-3.9.3-1]";
}

impl DecodeError {
    /// How many rules there are: the length of an array of counters by reason.
    pub const COUNT: usize = Self::ALL.len();

    /// Place of this rule in such an array, below [`DecodeError::COUNT`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())
    }
}

impl std::error::Error for DecodeError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_dense_and_in_the_order_of_all() {
        for (index, error) in DecodeError::ALL.iter().enumerate() {
            assert_eq!(error.index(), index);
        }
    }

    #[test]
    fn names_are_the_variants_in_snake_case() {
        for error in DecodeError::ALL {
            let mut name = String::new();
            for character in format!("{error:?}")
                .replace("QoS", "Qos")
                .replace("ConnAck", "Connack")
                .chars()
            {
                if character.is_uppercase() && !name.is_empty() {
                    name.push('_');
                }
                name.extend(character.to_lowercase());
            }
            let name = name.replace("pub_rel", "pubrel").replace("sub_ack", "suback");
            assert_eq!(error.name(), name);
        }
    }
}
