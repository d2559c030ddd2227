//! `/v2/session`: who of the account is connected now.
//!
//! Holds   - every core is asked, a bounded part of its sessions at a time: who comes or goes meanwhile may be seen or not.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::json;
use super::api::Api;
use super::auth::Caller;
use super::error::ApiError;
use super::time::{Style, Zone};
use crate::shard::query::{Answer, ConnectedSession, Query};

/// A connected client, as it is shown.
#[derive(Serialize, ToSchema)]
#[schema(as = Session)]
struct Shown<'s> {
    #[schema(example = "pump-07_k3x9")]
    client_id: &'s str,
    #[schema(example = "192.0.2.44")]
    ipaddress: &'s str,
    clean_sess: bool,
    /// 3 (MQTT 3.1) or 4 (MQTT 3.1.1).
    proto_ver: u8,
    /// Seconds.
    keepalive: u16,
    #[schema(example = "2026-03-04T08:58:02+0100")]
    connected_at: String,
}

impl<'s> Shown<'s> {
    fn new(session: &'s ConnectedSession, zone: &Zone) -> Shown<'s> {
        Shown {
            client_id: &session.client_id,
            ipaddress: &session.address,
            clean_sess: session.clean_session,
            proto_ver: session.level,
            keepalive: session.keep_alive_s,
            connected_at: zone.text(session.connected_ms, Style::Basic),
        }
    }
}

/// The clients of the account that are connected now, by MQTT or by MQTT over WebSocket.
#[utoipa::path(get, path = "/v2/session", tag = "session", responses((status = 200, body = [Shown])))]
pub(super) async fn list(State(api): State<Api>, caller: Caller) -> Result<Response, ApiError> {
    let account = caller.account;
    let mut all = Vec::new();
    // What all cores know of their first slots comes at once, and mostly that is all.
    let first = api.cores().ask_all(|| Query::Sessions { account, from: 0 }).await?;
    for (core, answer) in first.into_iter().enumerate() {
        let mut next = take(answer, &mut all);
        while let Some(from) = next {
            let answer = api.cores().ask_core(core, Query::Sessions { account, from }).await?;
            next = take(answer, &mut all);
        }
    }
    all.sort_unstable_by(|one, other| one.client_id.cmp(&other.client_id));
    let shown: Vec<_> = all.iter().map(|session| Shown::new(session, &caller.zone)).collect();
    Ok(json(StatusCode::OK, &shown))
}

fn take(answer: Answer, all: &mut Vec<ConnectedSession>) -> Option<u32> {
    match answer {
        Answer::Sessions { sessions, next } => {
            all.extend(sessions);
            next
        }
        // The account has gone.
        Answer::Refused(_) => None,
        Answer::Done | Answer::Registered => unreachable!("a core answers what it was asked"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http::testing::{CORES, Platform, START_MS};
    use crate::shard::ConnectionId;

    #[tokio::test]
    async fn all_sessions_of_all_cores_are_shown() {
        let platform = Platform::new();
        platform.get("/v2/session").await.is(200, &json!([]));
        let clients = ["c", "a", "f", "b", "e", "d"];
        for (number, client_id) in clients.into_iter().enumerate() {
            let session = ConnectedSession {
                connection: ConnectionId {
                    index: number as u32,
                    generation: 0,
                },
                client_id: client_id.into(),
                address: "192.0.2.44".to_owned(),
                clean_session: number % 2 == 0,
                level: 3 + number as u8 % 2,
                keep_alive_s: 60,
                connected_ms: START_MS + 1_000 * number as u64,
            };
            // Some cores have several, which come in parts.
            platform.connect(number as u16 % 2, session);
        }
        let shown = platform.get("/v2/session/").await;
        assert_eq!(shown.status, 200);
        let shown = shown.json();
        let ids: Vec<_> = shown
            .as_array()
            .unwrap()
            .iter()
            .map(|session| &session["client_id"])
            .collect();
        assert_eq!(ids, ["a", "b", "c", "d", "e", "f"]);
        assert_eq!(
            shown[0],
            json!({
                "client_id": "a", "ipaddress": "192.0.2.44", "clean_sess": false, "proto_ver": 4, "keepalive": 60,
                "connected_at": "2026-03-04T09:15:01+0100",
            })
        );
        let asked = platform.asked();
        let firsts = asked
            .iter()
            .filter(|(_, query)| matches!(query, Query::Sessions { from: 0, .. }));
        assert_eq!(firsts.count(), 2 * usize::from(CORES));
        for method in ["POST", "DELETE"] {
            platform
                .call(method, "/v2/session", &[], "")
                .await
                .is_refused(405, "BAD_METHOD");
        }
    }
}
