//! Requests of `skein account` where no broker runs: the same desk, on the store alone.
//!
//! Holds   - while it runs, the store is its own: a broker that is started meanwhile says that the directory is in use.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{Answer, Request};
use crate::http::desk::{Desk, DeskParts};
use crate::registry::access::Accounts;
use crate::shard::record::Stored;
use crate::store::client::Client;
use crate::store::error::StoreError;
use crate::store::lmdb;
use crate::store::writer::{Store, StoreConfig};

/// A store that cannot commit tries for ever; whoever waits at a terminal does not.
const COMMIT_WAIT: Duration = Duration::from_secs(20);

/// Opens the store of a directory, which is made if an account is to be added, answers, and closes it.
pub fn answer(dir: &Path, request: Request) -> Result<Answer, StoreError> {
    let may_create = matches!(request, Request::Add { .. });
    if !may_create && !lmdb::is_in(dir) {
        return Err(StoreError::Missing { path: dir.to_owned() });
    }
    let io = |error| StoreError::Io {
        path: dir.to_owned(),
        error,
    };
    let config = StoreConfig {
        retained_bytes_max: 0,
        ..StoreConfig::new(dir)
    };
    let (mut store, stored) = Store::open(config)?;
    // No core, no bell.
    store.start(Vec::new()).map_err(io)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(io)?;
    let desk = desk(stored, store.client());
    let answering = async { tokio::time::timeout(COMMIT_WAIT, super::answer(&desk, None, request)).await };
    let answer = runtime.block_on(answering).unwrap_or_else(|_| Answer::Refused {
        why: format!(
            "{} cannot be written now; see that its disk has room and is in order",
            dir.display()
        ),
        is_operators: true,
    });
    store.stop();
    Ok(answer)
}

fn desk(stored: Stored, client: Client) -> Desk {
    let events = stored
        .accounts
        .iter()
        .map(|(account, events)| (account.id, events.clone()));
    let events = events.collect();
    let accounts = Accounts::of(stored.accounts);
    for device in &stored.devices {
        if let Some(tenant) = accounts.tenant(device.account) {
            tenant.count_device();
        }
    }
    Desk::new(DeskParts {
        accounts: Arc::new(accounts),
        events,
        newest_account: stored.newest_account,
        books: Arc::new(client),
        // There is nobody to tell.
        tell: Box::new(|_| Box::pin(std::future::ready(()))),
    })
}
