//! Mail about an event, through the operator's relay.
//!
//! Owns    the relay, and how many mails an account has had today.
//! Called  by [`Notifier`](super::Notifier); its settings are made by `server`.
//! Holds   - an account gets at most [`MAILS_PER_DAY_MAX`] mails in a day of UTC; one that goes to both of its addresses is one;
//!         - what a device or an account has written is in the text of a mail or in a header as one line, never a header of
//!           its own;
//!         - a mail is sent on a thread that may block.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lettre::message::header::ContentType;
use lettre::message::{Mailbox, Message as MailMessage};
use lettre::{Address, SmtpTransport, Transport};

use super::message::Message;
use super::target;
use crate::http::desk::random_bytes;
use crate::limits::{MAIL_TIMEOUT_MS, MAILS_PER_DAY_MAX};
use crate::registry::access::AccountId;
use crate::registry::account::Account;

const MS_PER_DAY: u64 = 24 * 3_600 * 1_000;

/// A relay, and who writes.
#[derive(Clone, Debug)]
pub struct MailSettings {
    relay: SmtpTransport,
    from: Mailbox,
}

/// One sentence for the operator, without the password.
#[derive(Debug, thiserror::Error)]
pub enum BadMail {
    #[error(
        "--smtp-relay is no relay ({0}): give smtps://user:password@host:port, or smtp://host, with ?tls=required, \
         ?tls=opportunistic or ?tls=none where STARTTLS is to be chosen"
    )]
    Relay(String),
    #[error("--mail-from `{0}` is no mail address: give one such as skein@example.org")]
    From(String),
}

impl MailSettings {
    /// `smtps://` is encrypted from its first byte. `smtp://` is what `?tls=` says, else with STARTTLS: always where there is a
    /// password, if the relay offers it where there is none; and as it is within this host.
    pub fn parse(relay: &str, from: &str) -> Result<MailSettings, BadMail> {
        let from = from.parse().map_err(|_| BadMail::From(from.to_owned()))?;
        let refuse = |why: &dyn std::fmt::Display| BadMail::Relay(why.to_string());
        let mut url = reqwest::Url::parse(relay).map_err(|error| refuse(&error))?;
        let chosen = url.query_pairs().find(|(name, _)| name == "tls");
        let chosen = chosen.map(|(_, chosen)| chosen.into_owned());
        let is_here =
            url.host_str() == Some("localhost") || target::literal(&url).is_some_and(|address| address.is_loopback());
        let tls = match (url.scheme(), chosen.as_deref()) {
            ("smtps", None) => None,
            ("smtp", Some("required")) => Some("required"),
            ("smtp", Some("opportunistic")) => Some("opportunistic"),
            ("smtp", Some("none")) => None,
            ("smtp", None) if is_here => None,
            ("smtp", None) if url.password().is_some() => Some("required"),
            ("smtp", None) => Some("opportunistic"),
            _ => return Err(refuse(&"another scheme, or another way of tls")),
        };
        // In the words of the library.
        url.set_query(tls.map(|tls| format!("tls={tls}")).as_deref());
        if url.scheme() == "smtp" && url.port().is_none() {
            let port = if url.password().is_some() { 587 } else { 25 };
            let _ = url.set_port(Some(port));
        }
        let relay = SmtpTransport::from_url(url.as_str()).map_err(|error| refuse(&error))?;
        let relay = relay.timeout(Some(Duration::from_millis(MAIL_TIMEOUT_MS))).build();
        Ok(MailSettings { relay, from })
    }
}

pub(super) struct Mails {
    settings: Option<Arc<MailSettings>>,
    today: Mutex<Today>,
}

/// Of the day that a notification came last.
#[derive(Default)]
struct Today {
    day: u64,
    counts: HashMap<AccountId, u32>,
}

/// What has become of a mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Posted {
    /// By the relay, for at least one address.
    Taken,
    Logged,
    OverLimit,
}

#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct MailFailure {
    text: String,
    /// It will fail the next time too.
    pub is_final: bool,
}

/// A mail, and what has become of it for each address.
pub(super) struct Mail {
    settings: Option<Arc<MailSettings>>,
    account: AccountId,
    to: Vec<(Address, bool)>,
    is_any_taken: bool,
    subject: String,
    text: String,
    for_log: String,
}

impl Mails {
    pub fn new(settings: Option<MailSettings>) -> Mails {
        Mails {
            settings: settings.map(Arc::new),
            today: Mutex::default(),
        }
    }

    /// `None`: the account has had its mails of the day.
    pub fn compose(&self, account: &Account, message: &Message<'_>) -> Option<Mail> {
        if !self.count(account.id, message.at_ms) {
            return None;
        }
        let addresses = [&account.email1, &account.email2].into_iter();
        let mut to: Vec<(Address, bool)> = addresses
            .filter_map(|address| address.parse().ok())
            .map(|address| (address, false))
            .collect();
        to.dedup();
        let status = message.status_line();
        let text = format!(
            "{status}\n\nEvent:   {}\nChannel: {}\nTime:    {}\nAccount: {}\n",
            message.event_line(),
            message.channel_line(),
            local_time(message.at_ms, &account.locale),
            account.user_id,
        );
        Some(Mail {
            settings: self.settings.clone(),
            account: account.id,
            to,
            is_any_taken: false,
            subject: message.subject(),
            text,
            for_log: without_tokens(account, &format!("{}: {status}", message.subject())),
        })
    }

    fn count(&self, account: AccountId, at_ms: u64) -> bool {
        let mut today = self.today.lock().expect("nobody panics while holding it");
        let day = at_ms / MS_PER_DAY;
        // A notification of yesterday that comes late counts for today.
        if day > today.day {
            *today = Today {
                day,
                ..Today::default()
            };
        }
        let count = today.counts.entry(account).or_default();
        if *count == MAILS_PER_DAY_MAX {
            tracing::warn!(
                account = account.0,
                "an account has had its {MAILS_PER_DAY_MAX} mails of the day"
            );
        }
        *count = count.saturating_add(1);
        *count <= MAILS_PER_DAY_MAX
    }
}

impl Mail {
    /// To every address that has not had it. It may be called again after a failure that is not final.
    pub async fn send(&mut self) -> Result<Posted, MailFailure> {
        let why = match &self.settings {
            None => "there is no --smtp-relay",
            Some(_) if self.to.is_empty() => "the account has no mail address",
            Some(_) => "",
        };
        let Some(settings) = self.settings.clone().filter(|_| !self.to.is_empty()) else {
            let to: Vec<String> = self.to.iter().map(|(address, _)| address.to_string()).collect();
            let to = to.join(", ");
            tracing::info!(
                account = self.account.0,
                to,
                "a mail is logged, since {why}: {}",
                self.for_log
            );
            return Ok(Posted::Logged);
        };
        let mut failure = None;
        for (address, is_settled) in self.to.iter_mut().filter(|(_, is_settled)| !is_settled) {
            let mail = write(&settings.from, address.clone(), &self.subject, &self.text);
            let sent = match mail {
                Err(error) => Err((error.to_string(), true)),
                Ok(mail) => {
                    let settings = Arc::clone(&settings);
                    let sent = tokio::task::spawn_blocking(move || settings.relay.send(&mail)).await;
                    let failed = |error: lettre::transport::smtp::Error| (error.to_string(), error.is_permanent());
                    sent.map_err(|error| (error.to_string(), true))
                        .and_then(|sent| sent.map(drop).map_err(failed))
                }
            };
            match sent {
                Ok(()) => {
                    self.is_any_taken = true;
                    *is_settled = true;
                }
                Err((text, is_final)) => {
                    *is_settled = is_final;
                    // One that may be tried again decides.
                    if failure.as_ref().is_none_or(|failure: &MailFailure| failure.is_final) {
                        failure = Some(MailFailure { text, is_final });
                    }
                }
            }
        }
        match failure {
            Some(failure) if failure.is_final && self.is_any_taken => {
                tracing::debug!(
                    account = self.account.0,
                    "one of two addresses cannot have a mail: {failure}"
                );
                Ok(Posted::Taken)
            }
            Some(failure) => Err(failure),
            None => Ok(Posted::Taken),
        }
    }
}

fn write(from: &Mailbox, to: Address, subject: &str, text: &str) -> Result<MailMessage, lettre::error::Error> {
    MailMessage::builder()
        .from(from.clone())
        .to(Mailbox::new(None, to))
        .subject(subject)
        .message_id(Some(format!(
            "<{}@{}>",
            hex::encode(random_bytes::<16>()),
            from.email.domain()
        )))
        .header(ContentType::TEXT_PLAIN)
        .body(text.to_owned())
}

fn local_time(at_ms: u64, locale: &str) -> String {
    let zone = jiff::tz::TimeZone::get(locale).unwrap_or(jiff::tz::TimeZone::UTC);
    let at = jiff::Timestamp::from_millisecond(at_ms as i64).unwrap_or_default();
    at.to_zoned_datetime(zone).strftime("%Y-%m-%d %H:%M:%S %:z").to_string()
}

/// An account may have written its token into a description.
fn without_tokens(account: &Account, text: &str) -> String {
    let mut text = text.to_owned();
    for token in [&account.device_token, &account.api_token] {
        text = text.replace(token.as_str(), &token.masked().to_string());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::account::Token;

    fn refusal(relay: &str, from: &str) -> String {
        MailSettings::parse(relay, from).unwrap_err().to_string()
    }

    #[test]
    fn a_relay_is_a_url_and_a_password_is_encrypted_unless_the_operator_says_otherwise() {
        let settings = |relay: &str| format!("{:?}", MailSettings::parse(relay, "Skein <skein@example.org>").unwrap());
        for (relay, tls, port) in [
            ("smtp://127.0.0.1:2525", "None", 2525),
            ("smtp://user:secret@localhost", "None", 587),
            ("smtp://user:secret@[::1]:25", "None", 25),
            ("smtp://relay.example.org", "Opportunistic", 25),
            ("smtp://user:secret@relay.example.org", "Required", 587),
            (
                "smtp://user:secret@relay.example.org:25?tls=opportunistic",
                "Opportunistic",
                25,
            ),
            ("smtp://user:secret@relay.example.org?tls=none", "None", 587),
            ("smtp://user:p%40ss@127.0.0.1?tls=required", "Required", 587),
            ("smtps://user:secret@relay.example.org", "Wrapper", 465),
        ] {
            let settings = settings(relay);
            assert!(settings.contains(&format!("tls: {tls}")), "{relay}: {settings}");
            assert!(settings.contains(&format!("port: {port}")), "{relay}: {settings}");
            assert!(!settings.contains("secret"), "no log shows it: {settings}");
        }
        for relay in [
            "",
            "relay.example.org:25",
            "http://user:secret@relay",
            "smtps://",
            "smtp://",
            "smtp://h?tls=no",
            "smtps://user:secret@h?tls=none",
        ] {
            let refusal = refusal(relay, "skein@example.org");
            assert!(
                refusal.starts_with("--smtp-relay is no relay") && !refusal.contains("secret"),
                "{refusal}"
            );
        }
        for from in ["", "skein", "a@example.org\r\nBcc: b@example.org"] {
            assert!(refusal("smtp://localhost", from).starts_with("--mail-from"), "{from}");
        }
    }

    #[test]
    fn an_account_has_so_many_mails_a_day_and_another_day_begins_anew() {
        let mails = Mails::new(None);
        let noon = MS_PER_DAY * 20_000 + MS_PER_DAY / 2;
        for _ in 0..MAILS_PER_DAY_MAX {
            assert!(mails.count(AccountId(1), noon));
        }
        assert!(!mails.count(AccountId(1), noon));
        assert!(mails.count(AccountId(2), noon));
        assert!(!mails.count(AccountId(1), noon - MS_PER_DAY), "late");
        assert!(!mails.count(AccountId(1), noon + MS_PER_DAY / 2 - 1));
        assert!(mails.count(AccountId(1), noon + MS_PER_DAY / 2));
    }

    #[test]
    fn times_are_those_of_the_account_and_tokens_are_masked() {
        assert_eq!(
            local_time(1_772_614_931_000, "Europe/Vienna"),
            "2026-03-04 10:02:11 +01:00"
        );
        assert_eq!(local_time(1_772_614_931_000, "nowhere"), "2026-03-04 09:02:11 +00:00");
        let [api, device] = [1, 2].map(|byte| Token::from_random([byte; 16]));
        let account = Account::new(AccountId(1), "U000001", api, device, 0);
        let text = without_tokens(&account, &format!("x {} {}", api.as_str(), device.as_str()));
        assert_eq!(text, "x 0101… 0202…");
    }
}
