//! The device platform of `--access platform`: the control thread, and what it is made of.
//!
//! Owns    the handle of that thread, and of what runs on it.
//! Called  by `server`: [`listen`] with the other ports, [`start`] when the cores serve, [`Platform::stop`] before they stop.
//! Holds   - a first start makes an account before anybody is told that the broker listens, and its tokens are printed once;
//!         - a change of the accounts is over when every core has it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::config::{ApiConfig, Config, Networks};
use crate::http::admin::{AdminSocket, Endpoints};
use crate::http::api::{ApiParts, Clock, Settings};
use crate::http::cores::Cores;
use crate::http::desk::{Desk, DeskParts, NewAccount};
use crate::http::notify::mail::{BadMail, MailSettings};
use crate::http::notify::target::Allow;
use crate::http::notify::{self, Notifier, NotifyReport, NotifySettings};
use crate::http::{self, Beside, Handle, Parts};
use crate::net::certificate::Tls;
use crate::registry::access::{AccountId, Accounts};
use crate::registry::account::Account;
use crate::registry::datapoint::StoredDatapoints;
use crate::registry::event::Event;
use crate::routing::shard_key::ShardKey;
use crate::shard::query::Query;
use crate::store::client::Client;
use crate::worker::Mailbox;

/// For the first account of a data directory to be on disk.
const FIRST_ACCOUNT_WAIT: Duration = Duration::from_secs(30);

/// The platform of a broker that serves.
pub struct Platform {
    handle: Handle,
    notifier: Notifier,
    /// None: the API is closed.
    pub api: Option<SocketAddr>,
    pub endpoints: Endpoints,
    /// The account that this start has made.
    pub first_account: Option<Account>,
}

/// What it begins with.
pub struct PlatformParts {
    pub runtime: http::Runtime,
    pub settings: PlatformSettings,
    pub listener: Option<TcpListener>,
    pub tls: Option<Tls>,
    /// The snapshot that the cores begin with.
    pub accounts: Arc<Accounts>,
    pub events: Vec<(AccountId, Vec<Event>)>,
    pub newest_account: u32,
    pub stored_datapoints: StoredDatapoints,
    pub client: Client,
    pub mailboxes: Vec<Arc<Mailbox>>,
    pub shard_key: ShardKey,
    pub door: notify::Door,
    pub inbox: notify::Inbox,
    /// Where others find this broker.
    pub endpoints: Endpoints,
}

/// What an operator may say of it, checked.
pub struct PlatformSettings {
    api: Settings,
    notify: NotifySettings,
}

impl PlatformSettings {
    pub fn of(config: &Config) -> Result<PlatformSettings, BadMail> {
        let ApiConfig {
            rate,
            connector_rate,
            body_bytes_max,
            v1,
            webhook_allow,
            smtp_relay,
            mail_from,
            ..
        } = &config.api;
        let mail = match smtp_relay {
            None => None,
            Some(relay) => Some(MailSettings::parse(relay, mail_from)?),
        };
        Ok(PlatformSettings {
            api: Settings {
                calls_per_s: *rate,
                connector_sends_per_s: *connector_rate,
                body_bytes_max: *body_bytes_max,
                packet_bytes_max: config.packet_bytes_max,
                has_v1: *v1,
            },
            notify: NotifySettings {
                allow: match webhook_allow {
                    Networks::Any => Allow::Any,
                    Networks::These(networks) => Allow::These(networks.clone()),
                },
                mail,
                ..NotifySettings::default()
            },
        })
    }
}

/// The port of the API, bound; `None` if it is off.
pub fn listen(api: &ApiConfig) -> Result<Option<TcpListener>, (SocketAddr, io::Error)> {
    let Some(port) = api.port else { return Ok(None) };
    let address = SocketAddr::new(api.bind, port);
    TcpListener::bind(address).map(Some).map_err(|error| (address, error))
}

pub fn start(parts: PlatformParts, data_dir: &Path) -> io::Result<Platform> {
    let PlatformParts {
        runtime,
        settings,
        listener,
        tls,
        accounts,
        events,
        newest_account,
        stored_datapoints,
        client,
        mailboxes,
        shard_key,
        door,
        inbox,
        endpoints,
    } = parts;
    let api = listener.as_ref().map(TcpListener::local_addr).transpose()?;
    let cores = Cores::new(mailboxes, shard_key);
    let is_first = accounts.iter().next().is_none();
    let told = cores.clone();
    let desk = Desk::new(DeskParts {
        accounts,
        events,
        newest_account,
        books: Arc::new(client.clone()),
        tell: Box::new(move |change| {
            told.tell_all(&change);
            let cores = told.clone();
            // A core that does not answer stops, and everybody with it.
            Box::pin(async move { drop(cores.ask_all(|| Query::Settled).await) })
        }),
    });
    let notifier = Notifier::new(settings.notify, desk.clone(), &inbox);
    let admin = AdminSocket::bind(data_dir, endpoints.clone())?;
    let mut beside: Vec<Beside> = vec![
        Box::pin(notifier.clone().run(inbox)),
        Box::pin(admin.serve(desk.clone())),
    ];
    let (made, first) = mpsc::channel();
    if is_first {
        let desk = desk.clone();
        beside.push(Box::pin(async move {
            drop(made.send(desk.add_account(NewAccount::default()).await));
        }));
    }
    let handle = http::start(Parts {
        runtime,
        listener,
        tls,
        api: ApiParts {
            settings: settings.api,
            desk,
            cores,
            client,
            notifier: door.of_cores(),
            stored_datapoints,
            clock: Clock::host(),
        },
        beside,
    })?;
    let first_account = match is_first {
        false => None,
        true => match first.recv_timeout(FIRST_ACCOUNT_WAIT) {
            Ok(Ok(account)) => Some(account),
            Ok(Err(error)) => {
                tracing::error!("no account could be made: {error}");
                None
            }
            Err(_) => {
                tracing::error!("no account could be made: the disk does not answer");
                None
            }
        },
    };
    Ok(Platform {
        handle,
        notifier,
        api,
        endpoints,
        first_account,
    })
}

impl Platform {
    pub fn renew(&self, tls: Tls) {
        self.handle.renew(tls);
    }

    pub fn report(&self) -> NotifyReport {
        self.notifier.report()
    }

    /// Whoever is being answered waits for the cores, so this comes before they stop.
    pub fn stop(self) -> NotifyReport {
        let Platform { handle, notifier, .. } = self;
        handle.stop();
        notifier.report()
    }
}
