//! What the fields of an account and of an event may be.
//!
//! Called  by [`Desk`](super::Desk) before anything is committed.

use super::{AccountSettings, Bound, DefaultChannel, DeskError, QuotaSettings, UserChange};
use crate::http::notify::target;
use crate::limits::{EMAIL_CHARS_MAX, EVENT_INTERVAL_MS_MAX, POST_URL_CHARS_MAX, RULE_CHARS_MAX, TEXT_CHARS_MAX};
use crate::registry::account::Account;
use crate::registry::event::{Event, NotifyType};
use crate::registry::quota::OwnQuotas;

pub(super) fn apply_settings(account: &mut Account, settings: AccountSettings) -> Result<(), DeskError> {
    let AccountSettings {
        devices_max,
        storage_bytes_max,
        quotas,
        default_channel,
        user,
    } = settings;
    account.devices_max = devices_max.unwrap_or(account.devices_max);
    account.storage_bytes_max = storage_bytes_max.unwrap_or(account.storage_bytes_max);
    account.default_channel = match default_channel {
        None => account.default_channel,
        Some(DefaultChannel::Off) => None,
        Some(DefaultChannel::Channel(channel)) => Some(channel),
    };
    apply_quotas(&mut account.quotas, quotas);
    apply_user(account, user)
}

fn apply_quotas(own: &mut OwnQuotas, settings: QuotaSettings) {
    fn set<T>(own: &mut Option<T>, bound: Option<Bound<T>>) {
        match bound {
            None => {}
            Some(Bound::Default) => *own = None,
            Some(Bound::Own(bound)) => *own = Some(bound),
        }
    }
    let QuotaSettings {
        connections_max,
        sessions_max,
        subscriptions_max,
        publishes_per_s_max,
        kept_bytes_max,
    } = settings;
    set(&mut own.connections_max, connections_max);
    set(&mut own.sessions_max, sessions_max);
    set(&mut own.subscriptions_max, subscriptions_max);
    set(&mut own.publishes_per_s_max, publishes_per_s_max);
    set(&mut own.kept_bytes_max, kept_bytes_max);
}

pub(super) fn apply_user(account: &mut Account, change: UserChange) -> Result<(), DeskError> {
    let UserChange {
        email1,
        email2,
        organization,
        locale,
        user_alias,
    } = change;
    if let Some(email) = email1 {
        account.email1 = email_address("email1", email)?;
    }
    if let Some(email) = email2 {
        account.email2 = email_address("email2", email)?;
    }
    if let Some(text) = organization {
        account.organization = at_most("organization", TEXT_CHARS_MAX, text)?;
    }
    if let Some(text) = user_alias {
        account.user_alias = at_most("user_alias", TEXT_CHARS_MAX, text)?;
    }
    if let Some(name) = locale {
        account.locale = zone_name(&name)?;
    }
    Ok(())
}

/// The whole event, as it would be.
pub(super) fn check_event(event: &Event) -> Result<(), DeskError> {
    let refuse = |field, why| Err(DeskError::BadParameter { field, why });
    for (field, text, chars_max) in [
        ("description", &event.description, TEXT_CHARS_MAX),
        ("post_url", &event.post_url, POST_URL_CHARS_MAX),
        ("source", &event.source, RULE_CHARS_MAX),
        ("threshold", &event.threshold, RULE_CHARS_MAX),
    ] {
        check_length(field, text, chars_max)?;
    }
    if !event.post_url.is_empty() && target::parse(&event.post_url).is_err() {
        return refuse("post_url", "give an http or https URL, or nothing");
    }
    if event.interval_ms > EVENT_INTERVAL_MS_MAX {
        return refuse("interval", "it is too long");
    }
    if !event.is_enabled {
        return Ok(());
    }
    const INCOMPLETE: &str = "an enabled event needs it";
    match event {
        Event { channel: None, .. } => refuse("mapped_ch", INCOMPLETE),
        Event { source, .. } if source.is_empty() => refuse("source", INCOMPLETE),
        Event { threshold, .. } if threshold.is_empty() => refuse("threshold", INCOMPLETE),
        Event {
            notify_type: NotifyType::Http,
            post_url,
            ..
        } if post_url.is_empty() => refuse("post_url", INCOMPLETE),
        _ => Ok(()),
    }
}

fn at_most(field: &'static str, chars_max: usize, text: String) -> Result<String, DeskError> {
    check_length(field, &text, chars_max)?;
    Ok(text)
}

fn check_length(field: &'static str, text: &str, chars_max: usize) -> Result<(), DeskError> {
    // A character has at least one byte, so most texts need not be counted.
    if text.len() > chars_max && text.chars().count() > chars_max {
        let why = "it is too long";
        return Err(DeskError::BadParameter { field, why });
    }
    Ok(())
}

/// One address, or none.
fn email_address(field: &'static str, text: String) -> Result<String, DeskError> {
    check_length(field, &text, EMAIL_CHARS_MAX)?;
    if !text.is_empty() && text.parse::<lettre::Address>().is_err() {
        let why = "give one mail address, as in ops@example.org, or nothing";
        return Err(DeskError::BadParameter { field, why });
    }
    Ok(text)
}

/// The zone's name in its own spelling.
fn zone_name(name: &str) -> Result<String, DeskError> {
    let zone = jiff::tz::TimeZone::get(name).ok().filter(|zone| !zone.is_unknown());
    let name = zone.as_ref().and_then(|zone| zone.iana_name());
    name.map(str::to_owned).ok_or(DeskError::BadParameter {
        field: "locale",
        why: "give the IANA name of a time zone, as in Europe/Vienna",
    })
}
