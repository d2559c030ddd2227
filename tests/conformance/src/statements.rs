//! The normative statements of MQTT 3.1.1 (its appendix B), in short, and the rules of MQTT 3.1 under numbers of our own.
//!
//! Called  by `run` for the rows of the table.
//! Holds   - each has cases or a reason why it cannot be tested from outside, never both and never neither (tested below).

use crate::Section;

#[derive(Clone, Copy, Debug)]
pub struct Statement {
    pub id: &'static str,
    /// Our words; the standard's count.
    pub sentence: &'static str,
    /// Why no broker can be tested for it from outside.
    pub untestable: Option<&'static str>,
}

impl Statement {
    pub fn section(&self) -> Section {
        if self.id.starts_with("V31") {
            Section::Mqtt31
        } else {
            Section::Mqtt311
        }
    }
}

const fn s(id: &'static str, sentence: &'static str) -> Statement {
    Statement {
        id,
        sentence,
        untestable: None,
    }
}

const fn not(id: &'static str, sentence: &'static str, reason: &'static str) -> Statement {
    Statement {
        id,
        sentence,
        untestable: Some(reason),
    }
}

const CLIENT: &str = "it binds Clients only";

#[rustfmt::skip]
pub const STATEMENTS: &[Statement] = &[
    s("MQTT-1.5.3-1", "ill-formed UTF-8 or a surrogate in a string closes the connection"),
    s("MQTT-1.5.3-2", "U+0000 in a string closes the connection"),
    s("MQTT-1.5.3-3", "EF BB BF is U+FEFF wherever it stands and is not stripped"),
    s("MQTT-2.2.2-1", "reserved flag bits have the value of table 2.2 in whatever is sent"),
    s("MQTT-2.2.2-2", "a packet with invalid flags closes the connection"),
    s("MQTT-2.3.1-1", "SUBSCRIBE, UNSUBSCRIBE and PUBLISH above QoS 0 have a Packet Identifier that is not 0"),
    not("MQTT-2.3.1-2", "a Client gives each new packet an unused Packet Identifier", CLIENT),
    not("MQTT-2.3.1-3", "a Client that sends a packet again uses the same Packet Identifier", CLIENT),
    s("MQTT-2.3.1-4", "the Server's own PUBLISH above QoS 0 have unused Packet Identifiers, the same when sent again"),
    s("MQTT-2.3.1-5", "a PUBLISH at QoS 0 has no Packet Identifier"),
    s("MQTT-2.3.1-6", "PUBACK, PUBREC and PUBREL have the Packet Identifier of the PUBLISH"),
    s("MQTT-2.3.1-7", "SUBACK and UNSUBACK have the Packet Identifier of their request"),
    s("MQTT-3.1.0-1", "the first packet on a connection is a CONNECT"),
    s("MQTT-3.1.0-2", "a second CONNECT closes the connection"),
    s("MQTT-3.1.2-1", "a CONNECT with another protocol name is not processed as MQTT 3.1.1"),
    s("MQTT-3.1.2-2", "an unsupported protocol level gets return code 1, then the connection is closed"),
    s("MQTT-3.1.2-3", "the reserved Connect Flag set to 1 closes the connection"),
    s("MQTT-3.1.2-4", "Clean Session 0 resumes the Session, or makes one that is kept after the connection"),
    s("MQTT-3.1.2-5", "messages of QoS 1 and 2 are stored for a Session that is away"),
    s("MQTT-3.1.2-6", "Clean Session 1 discards the Session there was; its state never comes back"),
    s("MQTT-3.1.2-7", "retained messages are no part of a Session and stay when it ends"),
    s("MQTT-3.1.2-8", "the Will is published when the connection ends without DISCONNECT"),
    s("MQTT-3.1.2-9", "Will Flag 1: Will Topic and Will Message are in the payload"),
    s("MQTT-3.1.2-10", "the Will is gone once it has been published or a DISCONNECT has come"),
    s("MQTT-3.1.2-11", "Will Flag 0: Will QoS and Will Retain are 0, and no Will is in the payload"),
    s("MQTT-3.1.2-12", "Will Flag 0: no Will is published when the connection ends"),
    s("MQTT-3.1.2-13", "Will Flag 0: Will QoS is 0"),
    s("MQTT-3.1.2-14", "Will QoS is not 3"),
    s("MQTT-3.1.2-15", "Will Flag 0: Will Retain is 0"),
    s("MQTT-3.1.2-16", "Will Retain 0: the Will is not retained"),
    s("MQTT-3.1.2-17", "Will Retain 1: the Will is retained"),
    s("MQTT-3.1.2-18", "User Name Flag 0: no user name is in the payload"),
    s("MQTT-3.1.2-19", "User Name Flag 1: a user name is in the payload"),
    s("MQTT-3.1.2-20", "Password Flag 0: no password is in the payload"),
    s("MQTT-3.1.2-21", "Password Flag 1: a password is in the payload"),
    s("MQTT-3.1.2-22", "User Name Flag 0: the Password Flag is 0"),
    not("MQTT-3.1.2-23", "a Client sends something within the Keep Alive", CLIENT),
    s("MQTT-3.1.2-24", "a Client silent for 1.5 times its Keep Alive is disconnected as if the network had failed"),
    s("MQTT-3.1.3-1", "the fields of the payload come in the order identifier, Will Topic, Will Message, user name, password"),
    s("MQTT-3.1.3-2", "the Client Identifier names the Session"),
    s("MQTT-3.1.3-3", "the Client Identifier is there, first in the payload"),
    s("MQTT-3.1.3-4", "the Client Identifier is UTF-8"),
    s("MQTT-3.1.3-5", "identifiers of 1 to 23 digits and letters are allowed"),
    s("MQTT-3.1.3-6", "a Client without identifier, if let in, gets one of its own"),
    s("MQTT-3.1.3-7", "a Client without identifier sets Clean Session 1"),
    s("MQTT-3.1.3-8", "no identifier and Clean Session 0: return code 2, then the connection is closed"),
    s("MQTT-3.1.3-9", "a rejected identifier gets return code 2, then the connection is closed"),
    s("MQTT-3.1.3-10", "the Will Topic is UTF-8"),
    s("MQTT-3.1.3-11", "the user name is UTF-8"),
    s("MQTT-3.1.4-1", "a CONNECT that does not conform closes the connection without CONNACK"),
    s("MQTT-3.1.4-2", "a second connection with an identifier ends the first"),
    s("MQTT-3.1.4-3", "Clean Session is processed as section 3.1.2.4 says"),
    s("MQTT-3.1.4-4", "an accepted CONNECT gets a CONNACK with return code 0"),
    s("MQTT-3.1.4-5", "nothing that follows a rejected CONNECT is processed"),
    s("MQTT-3.2.0-1", "the first packet from the Server is CONNACK"),
    s("MQTT-3.2.2-1", "Clean Session 1: Session Present is 0"),
    s("MQTT-3.2.2-2", "Clean Session 0 with a stored Session: Session Present is 1"),
    s("MQTT-3.2.2-3", "Clean Session 0 without a stored Session: Session Present is 0"),
    s("MQTT-3.2.2-4", "a return code other than 0 goes with Session Present 0"),
    s("MQTT-3.2.2-5", "after a return code other than 0 the connection is closed"),
    not("MQTT-3.2.2-6", "no return code fits: the connection is closed without CONNACK",
        "whether a code fits is the Server's judgement; nothing a Client sends brings it about"),
    s("MQTT-3.3.1-1", "a PUBLISH that is sent again has DUP 1"),
    s("MQTT-3.3.1-2", "DUP is 0 at QoS 0"),
    s("MQTT-3.3.1-3", "DUP of what a publisher sends is not passed on"),
    s("MQTT-3.3.1-4", "a PUBLISH of QoS 3 closes the connection"),
    s("MQTT-3.3.1-5", "a retained message is stored with its QoS for subscribers to come"),
    s("MQTT-3.3.1-6", "a new subscription gets the last retained message of each topic that matches"),
    s("MQTT-3.3.1-7", "a retained message of QoS 0 discards the one before it"),
    s("MQTT-3.3.1-8", "RETAIN is 1 in what a new subscription gets of the retained"),
    s("MQTT-3.3.1-9", "RETAIN is 0 in what an established subscription gets"),
    s("MQTT-3.3.1-10", "a retained message without payload is delivered as usual and removes the retained one"),
    s("MQTT-3.3.1-11", "a retained message without payload is not stored"),
    s("MQTT-3.3.1-12", "RETAIN 0 stores nothing and removes nothing"),
    s("MQTT-3.3.2-1", "the topic name comes first in a PUBLISH and is UTF-8"),
    s("MQTT-3.3.2-2", "the topic name of a PUBLISH has no wildcards"),
    s("MQTT-3.3.2-3", "the topic name of a delivery matches the subscription"),
    s("MQTT-3.3.4-1", "QoS 0 gets no answer, QoS 1 a PUBACK, QoS 2 a PUBREC"),
    s("MQTT-3.3.5-1", "overlapping subscriptions: the message comes at the highest QoS of them"),
    s("MQTT-3.3.5-2", "a PUBLISH that is not authorised is acknowledged as usual, or the connection is closed"),
    s("MQTT-3.6.1-1", "a PUBREL with flags other than 2 closes the connection"),
    s("MQTT-3.8.1-1", "a SUBSCRIBE with flags other than 2 closes the connection"),
    s("MQTT-3.8.3-1", "the Topic Filters of a SUBSCRIBE are UTF-8"),
    s("MQTT-3.8.3-2", "filters with wildcards work, or are refused"),
    s("MQTT-3.8.3-3", "a SUBSCRIBE without filters is a protocol violation"),
    s("MQTT-3.8.3-4", "reserved bits in a requested QoS, or QoS 3, close the connection"),
    s("MQTT-3.8.4-1", "a SUBSCRIBE gets a SUBACK"),
    s("MQTT-3.8.4-2", "the SUBACK has the Packet Identifier of the SUBSCRIBE"),
    s("MQTT-3.8.4-3", "the same filter again replaces the subscription, and the retained messages come again"),
    s("MQTT-3.8.4-4", "several filters in a SUBSCRIBE are like several SUBSCRIBEs, with one SUBACK"),
    s("MQTT-3.8.4-5", "the SUBACK has a return code for each filter"),
    s("MQTT-3.8.4-6", "a message comes at the lower of its QoS and the one granted"),
    s("MQTT-3.9.3-1", "return codes come in the order of the filters"),
    s("MQTT-3.9.3-2", "return codes are 0, 1, 2 or 0x80"),
    s("MQTT-3.10.1-1", "an UNSUBSCRIBE with flags other than 2 closes the connection"),
    s("MQTT-3.10.3-1", "the Topic Filters of an UNSUBSCRIBE are UTF-8"),
    s("MQTT-3.10.3-2", "an UNSUBSCRIBE without filters is a protocol violation"),
    s("MQTT-3.10.4-1", "UNSUBSCRIBE ends just the subscription whose filter is the same, character by character"),
    s("MQTT-3.10.4-2", "after UNSUBSCRIBE no new messages are added for the Client"),
    s("MQTT-3.10.4-3", "deliveries begun before UNSUBSCRIBE are completed"),
    s("MQTT-3.10.4-4", "an UNSUBSCRIBE gets an UNSUBACK with its Packet Identifier"),
    s("MQTT-3.10.4-5", "the UNSUBACK comes where no subscription was there, too"),
    s("MQTT-3.10.4-6", "several filters in an UNSUBSCRIBE are like several, with one UNSUBACK"),
    s("MQTT-3.12.4-1", "a PINGREQ gets a PINGRESP"),
    s("MQTT-3.14.1-1", "a DISCONNECT with reserved bits set closes the connection as a violation"),
    not("MQTT-3.14.4-1", "after DISCONNECT the Client closes the connection", CLIENT),
    not("MQTT-3.14.4-2", "after DISCONNECT the Client sends nothing more", CLIENT),
    s("MQTT-3.14.4-3", "a DISCONNECT discards the Will"),
    s("MQTT-4.1.0-1", "the state of a Session is stored for as long as it lasts"),
    s("MQTT-4.1.0-2", "a Session lasts at least as long as its connection"),
    s("MQTT-4.3.1-1", "QoS 0 is sent with QoS 0 and DUP 0"),
    s("MQTT-4.3.2-1", "QoS 1 as sender: an unused identifier, DUP 0, unacknowledged until PUBACK"),
    s("MQTT-4.3.2-2", "QoS 1 as receiver: PUBACK, and what comes with the identifier after it is a new message"),
    s("MQTT-4.3.3-1", "QoS 2 as sender: DUP 0, PUBREL after PUBREC, never PUBLISH again after PUBREL"),
    s("MQTT-4.3.3-2", "QoS 2 as receiver: PUBREC, PUBCOMP, and one delivery however often it comes before PUBREL"),
    s("MQTT-4.4.0-1", "a Session that is resumed gets its unacknowledged PUBLISH and PUBREL with their identifiers"),
    s("MQTT-4.5.0-1", "a message is added to the Session of each Client that has a matching subscription"),
    not("MQTT-4.5.0-2", "a Client acknowledges whatever it receives", CLIENT),
    s("MQTT-4.6.0-1", "PUBLISHes that are sent again come in their original order"),
    s("MQTT-4.6.0-2", "PUBACKs come in the order of the PUBLISHes"),
    s("MQTT-4.6.0-3", "PUBRECs come in the order of the PUBLISHes"),
    s("MQTT-4.6.0-4", "PUBRELs come in the order of the PUBRECs"),
    s("MQTT-4.6.0-5", "a topic is ordered by default"),
    s("MQTT-4.6.0-6", "messages of a topic and QoS come in the order in which they were published"),
    s("MQTT-4.7.1-1", "wildcards do not stand in topic names"),
    s("MQTT-4.7.1-2", "# is a whole level, and the last"),
    s("MQTT-4.7.1-3", "+ is a whole level"),
    s("MQTT-4.7.2-1", "a filter that begins with a wildcard does not match topics that begin with $"),
    s("MQTT-4.7.3-1", "topic names and filters are at least one character long"),
    s("MQTT-4.7.3-2", "topic names and filters do not contain U+0000"),
    not("MQTT-4.7.3-3", "topic names and filters have at most 65,535 bytes",
        "their length has two bytes in every packet: a longer one cannot be said"),
    s("MQTT-4.7.3-4", "matching changes and normalizes nothing in names and filters"),
    s("MQTT-4.8.0-1", "a protocol violation closes the connection"),
    not("MQTT-4.8.0-2", "a Transient Error while a packet is processed closes the connection",
        "nothing that a Client sends brings such an error about"),
    s("MQTT-6.0.0-1", "WebSocket: a data frame that is not binary closes the connection"),
    s("MQTT-6.0.0-2", "WebSocket: packets need not be aligned with frames"),
    not("MQTT-6.0.0-3", "WebSocket: a Client offers the sub-protocol mqtt", CLIENT),
    s("MQTT-6.0.0-4", "WebSocket: the sub-protocol that the Server selects is mqtt"),
    not("MQTT-7.0.0-1", "a Server that connects to other Servers conforms as a Client, too",
        "what it does as a Client is not seen by its own Clients"),
    not("MQTT-7.0.0-2", "no extension is needed to work with a conforming implementation",
        "it is the sum of the others: no case here uses any"),
    s("MQTT-7.1.1-1", "a Server takes connections over an ordered, lossless stream of bytes"),
    not("MQTT-7.1.2-1", "a Client connects over an ordered, lossless stream of bytes", CLIENT),

    s("V31-1", "MQIsdp with level 3 is accepted, beside MQTT with level 4 on the same port"),
    s("V31-2", "MQIsdp with another level, or MQTT with level 3, is refused"),
    s("V31-3", "an identifier of more than 23 characters gets return code 2, or is taken"),
    s("V31-4", "an empty identifier gets return code 2"),
    s("V31-5", "the first byte of CONNACK is reserved: 0, also where a Session is resumed"),
    s("V31-7", "DUP, QoS and RETAIN in the header of CONNECT are ignored"),
    s("V31-8", "the reserved Connect Flag is ignored"),
    s("V31-9", "a user name or password that the flags promise and the length leaves out counts as absent"),
    s("V31-10", "a password without a user name is refused"),
    s("V31-11", "SUBSCRIBE, UNSUBSCRIBE and PUBREL may have DUP set"),
    s("V31-12", "a SUBACK has no failure code: only 0, 1 and 2"),
    s("V31-14", "what is sent again after a reconnect has DUP set and the same identifier"),
    s("V31-15", "a PUBLISH of QoS 2 that comes twice is delivered once"),
    s("V31-16", "Clients of 3.1 and 3.1.1 share topics, retained messages and Sessions"),
    s("V31-17", "a second CONNECT, or no CONNECT first, closes the connection"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases;
    use std::collections::BTreeSet;

    #[test]
    fn each_statement_has_cases_or_a_reason() {
        let played: BTreeSet<&str> = cases::all().iter().flat_map(|case| case.ids).copied().collect();
        let known: BTreeSet<&str> = STATEMENTS.iter().map(|statement| statement.id).collect();
        assert_eq!(known.len(), STATEMENTS.len(), "one is there twice");
        for statement in STATEMENTS {
            assert_ne!(
                played.contains(statement.id),
                statement.untestable.is_some(),
                "{}",
                statement.id
            );
        }
        assert_eq!(played.difference(&known).collect::<Vec<_>>(), [&""; 0]);
    }

    #[test]
    fn all_statements_of_the_standard_are_there() {
        // Section, and how many it has.
        let counts = "1.5.3 3  2.2.2 2  2.3.1 7  3.1.0 2  3.1.2 24  3.1.3 11  3.1.4 5  3.2.0 1  3.2.2 6  3.3.1 12  3.3.2 3  3.3.4 1  \
                      3.3.5 2  3.6.1 1  3.8.1 1  3.8.3 4  3.8.4 6  3.9.3 2  3.10.1 1  3.10.3 2  3.10.4 6  3.12.4 1  3.14.1 1  \
                      3.14.4 3  4.1.0 2  4.3.1 1  4.3.2 2  4.3.3 2  4.4.0 1  4.5.0 2  4.6.0 6  4.7.1 3  4.7.2 1  4.7.3 4  4.8.0 2  \
                      6.0.0 4  7.0.0 2  7.1.1 1  7.1.2 1";
        let words: Vec<&str> = counts.split_whitespace().collect();
        let wanted = words.chunks(2).flat_map(|pair| {
            let count: usize = pair[1].parse().unwrap();
            (1..=count).map(|number| format!("MQTT-{}-{number}", pair[0]))
        });
        let found = STATEMENTS
            .iter()
            .filter(|statement| statement.section() == Section::Mqtt311);
        assert_eq!(
            found.map(|statement| statement.id.to_owned()).collect::<Vec<_>>(),
            wanted.collect::<Vec<_>>()
        );
    }
}
