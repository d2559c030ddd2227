//! The lines of the conformance checklist that the conversations answer for: all but WebSocket.
//!
//! Called  by the test in `main.rs` that fails when a line has no conversation.

use std::collections::BTreeSet;

use crate::script::Conversation;

/// One row per line of the checklist, in its order.
const LINES: &str = "
framing:    MQTT-2.2.2-1 MQTT-2.2.2-2
            MQTT-4.8.0-1
            X-1
            X-2
            X-3
            X-4
            MQTT-1.5.3-1
            MQTT-1.5.3-2 MQTT-4.7.3-2
            MQTT-1.5.3-3
            X-5
            MQTT-2.3.1-1
connect:    MQTT-3.1.0-1
            MQTT-3.1.0-2
            X-6
            MQTT-3.1.2-1
            MQTT-3.1.2-2
            MQTT-3.1.2-3
            MQTT-3.1.2-9
            MQTT-3.1.2-11 MQTT-3.1.2-13 MQTT-3.1.2-15
            MQTT-3.1.2-14
            MQTT-3.1.2-18 MQTT-3.1.2-20
            MQTT-3.1.2-19 MQTT-3.1.2-21
            MQTT-3.1.2-22
            X-7
            X-8
            MQTT-3.1.3-5
            MQTT-3.1.3-6 MQTT-3.1.3-7
            MQTT-3.1.3-8
            MQTT-3.1.3-9
            X-9
            MQTT-3.1.4-2
            MQTT-3.1.4-4 MQTT-3.2.0-1
            MQTT-3.1.4-5
            X-10
            MQTT-3.2.2-1
            MQTT-3.2.2-2
            MQTT-3.2.2-3
            MQTT-3.2.2-4 MQTT-3.2.2-5
            MQTT-3.1.2-4 MQTT-3.1.2-5
            MQTT-3.1.2-6
            MQTT-3.1.2-7
keep alive: MQTT-3.1.2-24
            X-11
            X-12
            MQTT-3.12.4-1
wills:      MQTT-3.1.2-8
            MQTT-3.1.2-10 MQTT-3.14.4-3
            MQTT-3.14.1-1
            MQTT-3.1.2-16 MQTT-3.1.2-17
            X-13
publish:    MQTT-3.3.1-2
            MQTT-3.3.1-4
            MQTT-3.3.2-1 MQTT-4.7.3-1
            MQTT-3.3.2-2 MQTT-4.7.1-1
            MQTT-3.3.1-3
            MQTT-3.3.1-5 MQTT-3.3.1-6 MQTT-3.3.1-8
            MQTT-3.3.1-9
            MQTT-3.3.1-7
            MQTT-3.3.1-10 MQTT-3.3.1-11
            MQTT-3.3.1-12
            MQTT-3.3.5-1
            MQTT-3.3.5-2
            MQTT-4.7.3-3
            X-14
QoS:        MQTT-3.3.4-1 MQTT-2.3.1-6
            MQTT-4.3.2-2
            MQTT-4.3.3-2
            X-15
            X-16
            X-17
            MQTT-3.6.1-1
            MQTT-4.4.0-1 MQTT-3.3.1-1
            X-18
            MQTT-2.3.1-4
            MQTT-3.8.4-6
            MQTT-4.6.0-5 MQTT-4.6.0-6
subscribe:  MQTT-3.8.1-1 MQTT-3.10.1-1
            MQTT-3.8.3-3 MQTT-3.10.3-2
            MQTT-3.8.3-4
            MQTT-4.7.1-2 MQTT-4.7.1-3
            MQTT-4.7.3-1
            MQTT-3.8.4-1 MQTT-3.8.4-2 MQTT-3.8.4-5 MQTT-3.9.3-1
            MQTT-3.9.3-2
            MQTT-3.8.4-3
            MQTT-3.8.4-4
            MQTT-3.10.4-1
            MQTT-3.10.4-2 MQTT-3.10.4-3
            MQTT-3.10.4-4 MQTT-3.10.4-5 MQTT-3.10.4-6
            X-19
matching:   X-20
            X-21
            MQTT-4.7.2-1
            MQTT-4.7.3-4
level 3:    V31-1
            V31-2
            V31-3
            V31-4
            V31-5
            V31-6
            V31-7
            V31-8
            V31-9
            V31-10
            V31-11
            V31-12
            V31-13
            V31-14
            V31-15
            V31-16
            V31-17
            V31-18
";

/// Lines that say what authentication and authorisation forbid: `--access open` forbids nothing, so there is nothing yet to play.
const NEED_AUTHORISATION: &[&str] = &["X-9", "X-13", "MQTT-3.3.5-2", "V31-13"];

/// What keeps the table from being true: ids without a conversation, ids nobody knows, excuses that no longer hold.
pub fn problems(conversations: &[Conversation]) -> Vec<String> {
    let wanted: BTreeSet<&str> = LINES
        .split_whitespace()
        .filter(|word| ["MQTT-", "X-", "V31-"].iter().any(|p| word.starts_with(p)))
        .collect();
    let played: BTreeSet<&str> = conversations.iter().flat_map(|c| &c.ids).map(String::as_str).collect();
    let excused: BTreeSet<&str> = NEED_AUTHORISATION.iter().copied().collect();
    let mut problems = Vec::new();
    problems.extend(
        wanted
            .difference(&played)
            .filter(|id| !excused.contains(*id))
            .map(|id| format!("{id}: not played")),
    );
    problems.extend(
        played
            .difference(&wanted)
            .map(|id| format!("{id}: no such line in the checklist")),
    );
    problems.extend(
        excused
            .intersection(&played)
            .map(|id| format!("{id}: played, but excused")),
    );
    problems
}
