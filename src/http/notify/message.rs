//! What is said of an event.
//!
//! Called  by [`Notifier`](super::Notifier).
//! Holds   - a webhook is told the eight fields of the contract, in its order, and `current` as it was received;
//!         - what goes into a mail or a log is of one line and of bounded length, whatever a device has sent.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::registry::event::{Event, Notification, Operator};

/// Characters of a value in a text for people.
const SHORT_CHARS_MAX: usize = 200;

pub(super) struct Message<'a> {
    event: &'a Event,
    channel: u32,
    channel_name: &'a str,
    current: &'a RawValue,
    pub at_ms: u64,
}

/// The body of a webhook.
#[derive(Serialize)]
struct Body<'a> {
    event_id: u32,
    description: &'a str,
    mapped_ch: u32,
    channel_name: &'a str,
    source: &'a str,
    status: String,
    current: &'a RawValue,
    threshold: &'a str,
}

impl<'a> Message<'a> {
    pub fn new(
        event: &'a Event,
        notification: &'a Notification,
        channel_name: &'a str,
    ) -> Result<Message<'a>, serde_json::Error> {
        Ok(Message {
            event,
            channel: notification.channel.number(),
            channel_name,
            current: serde_json::from_str(&notification.current)?,
            at_ms: notification.at_ms,
        })
    }

    pub fn json(&self) -> Vec<u8> {
        let event = self.event;
        let body = Body {
            event_id: event.event_id,
            description: &event.description,
            mapped_ch: self.channel,
            channel_name: self.channel_name,
            source: &event.source,
            status: self.status(&self.current_text()),
            current: self.current,
            threshold: &event.threshold,
        };
        serde_json::to_vec(&body).expect("it is made of texts and numbers")
    }

    /// A sentence for people.
    fn status(&self, current: &str) -> String {
        let Event {
            source,
            operator,
            threshold,
            ..
        } = self.event;
        let what = match operator {
            Operator::Equal => "has its value",
            Operator::NotEqual => "has another value",
            _ => "crossed its limit",
        };
        format!(
            "{source} {what}. Current:{current} {} Threshold:{threshold}",
            operator.as_str()
        )
    }

    /// A text without its quotes; anything else as it was received.
    fn current_text(&self) -> String {
        serde_json::from_str(self.current.get()).unwrap_or_else(|_| self.current.get().to_owned())
    }

    /// For a mail.
    pub fn subject(&self) -> String {
        match self.event.description.trim() {
            "" => format!("Event {} on channel {}", self.event.event_id, self.channel),
            description => one_line(description),
        }
    }

    /// For a mail or a log. Its end is kept: what the event says itself is short.
    pub fn status_line(&self) -> String {
        without_breaks(&self.status(&one_line(&self.current_text())))
    }

    pub fn event_line(&self) -> String {
        one_line(&format!("{} {}", self.event.event_id, self.event.description))
    }

    pub fn channel_line(&self) -> String {
        one_line(&format!("{} {}", self.channel, self.channel_name))
    }
}

/// With blanks for what could begin a line.
fn without_breaks(text: &str) -> String {
    let is_break = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    text.trim().replace(is_break, " ")
}

/// Cut where it gets long, too.
fn one_line(text: &str) -> String {
    let mut line = without_breaks(text);
    if let Some((end, _)) = line.char_indices().nth(SHORT_CHARS_MAX) {
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::desk::tests::{channel, event};
    use crate::registry::access::AccountId;

    fn notification(current: &str) -> Notification {
        Notification {
            account: AccountId(1),
            event_id: 12,
            channel: channel(3),
            current: current.into(),
            at_ms: 0,
        }
    }

    fn json(event: &Event, current: &str) -> String {
        let notification = notification(current);
        let message = Message::new(event, &notification, "water").unwrap();
        String::from_utf8(message.json()).unwrap()
    }

    #[test]
    fn a_webhook_is_told_the_eight_fields_in_order() {
        let event = Event {
            event_id: 12,
            ..event("http://h/")
        };
        assert_eq!(
            json(&event, "31.2"),
            r#"{"event_id":12,"description":"well too warm","mapped_ch":3,"channel_name":"water","source":"temp","status":"temp crossed its limit. Current:31.2 > Threshold:30","current":31.2,"threshold":"30"}"#
        );
    }

    #[test]
    fn the_value_stays_as_it_was_received_and_the_sentence_ends_in_the_comparison() {
        for (operator, current, field, end) in [
            (Operator::Greater, "31.200", "31.200", "Current:31.200 > Threshold:30"),
            (
                Operator::LessOrEqual,
                "12345678901234567890",
                "12345678901234567890",
                "Current:12345678901234567890 <= Threshold:30",
            ),
            (
                Operator::Equal,
                r#""op\"en""#,
                r#""op\"en""#,
                r#"Current:op\"en = Threshold:30"#,
            ),
            (Operator::NotEqual, "true", "true", "Current:true != Threshold:30"),
        ] {
            let event = Event {
                operator,
                ..event("http://h/")
            };
            let json = json(&event, current);
            assert!(json.contains(&format!(r#""current":{field},"#)), "{json}");
            assert!(json.contains(&format!(r#"{end}","current""#)), "{json}");
        }
        assert!(Message::new(&event(""), &notification("NaN"), "").is_err());
    }

    #[test]
    fn a_line_for_people_is_one_line_and_short() {
        let event = Event {
            description: "a\r\nBcc: x@example.org\u{2028}\0b".to_owned(),
            source: "s\n".to_owned(),
            ..event("http://h/")
        };
        let current = format!("\"{}\\n\"", "é".repeat(1_000));
        let notification = notification(&current);
        let message = Message::new(&event, &notification, "wa\nter").unwrap();
        assert_eq!(message.subject(), "a  Bcc: x@example.org  b");
        for line in [message.status_line(), message.event_line(), message.channel_line()] {
            assert!(
                !line.contains(char::is_control) && line.chars().count() <= 2 * SHORT_CHARS_MAX,
                "{line}"
            );
        }
        assert!(message.status_line().ends_with("é… > Threshold:30"));
        let nameless = Event::default();
        let message = Message::new(&nameless, &notification, "").unwrap();
        assert_eq!(message.subject(), "Event 0 on channel 3");
    }
}
