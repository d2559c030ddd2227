//! Goal: each notification is told once, to whom it should be, and nothing that a target does holds up anybody else. Method:
//! servers on this host that record what they get and answer as they are told to.
use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::*;
use crate::http::desk::tests::{FakeBooks, channel, desk, event};
use crate::http::desk::{NewAccount, UserChange};
use crate::registry::access::AccountId;

/// How long a test waits for what must come, on a host that has much else to do.
const SOON: Duration = Duration::from_secs(60);

struct World {
    desk: Desk,
    books: Arc<FakeBooks>,
    account: AccountId,
    door: Door,
    notifier: Notifier,
}

fn allow(networks: &[&str]) -> Allow {
    Allow::These(networks.iter().map(|network| network.parse().unwrap()).collect())
}

fn settings() -> NotifySettings {
    NotifySettings {
        allow: allow(&["127.0.0.1/32"]),
        mail: None,
        timeout_ms: 30_000,
        retry_ms: [10, 20],
    }
}

async fn world(settings: NotifySettings) -> World {
    let (desk, books, _) = desk();
    let account = desk.add_account(NewAccount::default()).await.unwrap().id;
    books.put_channel(account, channel(3), "water");
    let (door, inbox) = door();
    let notifier = Notifier::new(settings, desk.clone(), &inbox);
    tokio::spawn(notifier.clone().run(inbox));
    World {
        desk,
        books,
        account,
        door,
        notifier,
    }
}

impl World {
    async fn event(&self, event: Event) -> u32 {
        self.desk.create_event(self.account, event).await.unwrap()
    }

    fn notify(&self, event_id: u32, current: &str) {
        assert!(self.door.take(notification(self.account, event_id, current)));
    }

    /// When nothing waits any more.
    async fn report(&self) -> NotifyReport {
        let settled = async {
            while self.notifier.report().waiting > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(SOON, settled).await.expect("all is told");
        self.notifier.report()
    }
}

fn notification(account: AccountId, event_id: u32, current: &str) -> Notification {
    Notification {
        account,
        event_id,
        channel: channel(3),
        current: current.into(),
        at_ms: 1_772_614_931_000,
    }
}

/// A request that a server has got.
#[derive(Debug)]
struct Got {
    head: String,
    body: String,
}

/// What a server does with the requests, one after another; the last goes on for ever.
#[derive(Clone, Copy)]
enum Answer {
    Status(&'static str),
    Silence,
    Hangup,
}

struct Server {
    address: SocketAddr,
    got: UnboundedReceiver<Got>,
}

impl Server {
    async fn start(answers: &'static [Answer]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, got) = unbounded_channel();
        tokio::spawn(async move {
            let turn = Arc::new(AtomicUsize::new(0));
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, answers, Arc::clone(&turn), seen.clone()));
            }
        });
        Server { address, got }
    }

    fn url(&self) -> String {
        format!("http://{}/hook?key=1", self.address)
    }

    async fn next(&mut self) -> Got {
        let got = tokio::time::timeout(SOON, self.got.recv()).await;
        got.expect("a request comes").unwrap()
    }

    fn assert_no_more(&mut self) {
        assert!(self.got.try_recv().is_err());
    }
}

async fn serve(stream: TcpStream, answers: &'static [Answer], turn: Arc<AtomicUsize>, seen: UnboundedSender<Got>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.unwrap().parse().unwrap()];
        stream.read_exact(&mut body).await.unwrap();
        let body = String::from_utf8(body).unwrap();
        let _ = seen.send(Got { head, body });
        let turn = turn.fetch_add(1, Ordering::Relaxed);
        match answers[turn.min(answers.len() - 1)] {
            Answer::Status(status) => {
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            Answer::Silence => tokio::time::sleep(SOON).await,
            Answer::Hangup => return,
        }
    }
}

#[tokio::test]
async fn a_notification_is_one_post_with_the_eight_fields() {
    let mut server = Server::start(&[Answer::Status("204 No Content")]).await;
    let world = world(settings()).await;
    let id = world.event(event(&server.url())).await;
    world.notify(id, "31.2");
    let got = server.next().await;
    assert!(got.head.starts_with("POST /hook?key=1 HTTP/1.1\r\n"), "{}", got.head);
    let host = format!("host: {}\r\n", server.address);
    assert!(
        got.head.contains("content-type: application/json\r\n") && got.head.contains(&host),
        "{}",
        got.head
    );
    let json: serde_json::Value = serde_json::from_str(&got.body).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "event_id": id, "description": "well too warm", "mapped_ch": 3, "channel_name": "water", "source": "temp",
            "status": "temp crossed its limit. Current:31.2 > Threshold:30", "current": 31.2, "threshold": "30",
        })
    );
    let report = world.report().await;
    assert_eq!((report.delivered, report.retries), (1, 0));
    server.assert_no_more();
}

#[tokio::test]
async fn notifications_of_one_event_come_in_order_also_when_one_is_tried_again() {
    let mut server = Server::start(&[
        Answer::Status("200 OK"),
        Answer::Status("503 Later"),
        Answer::Hangup,
        Answer::Status("200 OK"),
    ])
    .await;
    let world = world(settings()).await;
    let id = world.event(event(&server.url())).await;
    for current in ["1", "2", "3"] {
        world.notify(id, current);
    }
    for current in ["1", "2", "2", "2", "3"] {
        let got = server.next().await;
        assert!(got.body.contains(&format!(r#""current":{current},"#)), "{}", got.body);
    }
    let report = world.report().await;
    assert_eq!((report.delivered, report.retries, report.failed), (3, 2, 0));
    server.assert_no_more();
}

#[tokio::test]
async fn after_three_attempts_a_notification_has_failed() {
    let mut server = Server::start(&[Answer::Status("500 No")]).await;
    let world = world(settings()).await;
    let id = world.event(event(&server.url())).await;
    let began = Instant::now();
    world.notify(id, "31");
    for _ in 0..3 {
        server.next().await;
    }
    let report = world.report().await;
    assert_eq!((report.failed, report.retries, report.delivered), (1, 2, 0));
    assert!(
        began.elapsed() >= Duration::from_millis(30),
        "it waits between attempts"
    );
    server.assert_no_more();
}

#[tokio::test]
async fn a_target_that_does_not_answer_holds_up_no_other() {
    let mut silent = Server::start(&[Answer::Silence]).await;
    let mut quick = Server::start(&[Answer::Status("200 OK")]).await;
    let world = world(settings()).await;
    let slow = world.event(event(&silent.url())).await;
    let fast = world.event(event(&quick.url())).await;
    for _ in 0..10 {
        world.notify(slow, "31");
    }
    silent.next().await;
    for _ in 0..10 {
        world.notify(fast, "31");
    }
    for _ in 0..10 {
        quick.next().await;
    }
    tokio::time::timeout(SOON, async {
        while world.notifier.report().delivered < 10 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap();
    let report = world.notifier.report();
    assert_eq!(
        (report.waiting, report.retries),
        (10, 0),
        "the other's first attempt still runs"
    );
    silent.assert_no_more();
}

#[tokio::test]
async fn a_target_that_does_not_answer_in_time_has_three_attempts_of_that_time() {
    let mut silent = Server::start(&[Answer::Silence]).await;
    let world = world(NotifySettings {
        timeout_ms: 200,
        ..settings()
    })
    .await;
    let id = world.event(event(&silent.url())).await;
    let began = Instant::now();
    world.notify(id, "31");
    let report = world.report().await;
    assert!(began.elapsed() >= Duration::from_millis(600));
    assert_eq!((report.failed, report.retries), (1, 2));
    for _ in 0..3 {
        silent.next().await;
    }
}

#[tokio::test]
async fn a_redirect_is_a_failure_and_not_followed() {
    let mut elsewhere = Server::start(&[Answer::Status("200 OK")]).await;
    let to = format!("302 Found\r\nlocation: {}", elsewhere.url());
    let mut server = Server::start(vec![Answer::Status(to.leak())].leak()).await;
    let world = world(settings()).await;
    let id = world.event(event(&server.url())).await;
    world.notify(id, "31");
    for _ in 0..3 {
        server.next().await;
    }
    assert_eq!(world.report().await.failed, 1);
    elsewhere.assert_no_more();
}

#[tokio::test]
async fn what_is_not_allowed_is_never_connected_to_and_not_tried_again() {
    let mut server = Server::start(&[Answer::Status("200 OK")]).await;
    let world = world(NotifySettings {
        allow: Allow::default(),
        ..settings()
    })
    .await;
    let port = server.address.port();
    // By address in any writing, and by a name that is looked up.
    let hosts = ["127.0.0.1", "0x7f.1", "2130706433", "[::ffff:127.0.0.1]", "localhost"];
    for host in hosts {
        let id = world.event(event(&format!("http://{host}:{port}/"))).await;
        world.notify(id, "31");
    }
    let report = world.report().await;
    assert_eq!((report.refused, report.retries), (hosts.len() as u64, 0));
    server.assert_no_more();
}

#[tokio::test]
async fn a_name_is_looked_up_and_one_address_that_is_refused_refuses_it() {
    // Both addresses of this name are this host's; the server is at one of them.
    let mut server = Server::start(&[Answer::Status("200 OK")]).await;
    let world = world(NotifySettings {
        allow: allow(&["127.0.0.1/32", "::1/128"]),
        ..settings()
    })
    .await;
    let url = format!("http://localhost:{}/", server.address.port());
    let id = world.event(event(&url)).await;
    world.notify(id, "31");
    server.next().await;
    assert_eq!(world.report().await.delivered, 1);

    let allow = allow(&["127.0.0.0/8"]);
    let addresses: Vec<std::net::IpAddr> = ["127.0.0.1", "1.1.1.1"].map(|address| address.parse().unwrap()).into();
    assert_eq!(webhook::check(&allow, addresses.clone()).unwrap(), addresses);
    let both = [addresses, vec!["10.0.0.1".parse().unwrap()]].concat();
    assert_eq!(
        webhook::check(&allow, both),
        Err(target::Refused("10.0.0.1".parse().unwrap()))
    );
}

#[tokio::test]
async fn a_host_that_is_not_there_is_tried_again_and_fails() {
    let world = world(settings()).await;
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let closed = world.event(event(&format!("http://127.0.0.1:{port}/"))).await;
    world.notify(closed, "31");
    let unknown = world.event(event("http://nowhere.invalid/")).await;
    world.notify(unknown, "31");
    let report = world.report().await;
    assert_eq!((report.failed, report.retries), (2, 4));
}

#[tokio::test]
async fn over_https_a_certificate_that_this_host_does_not_trust_is_a_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let (refused, mut saw) = unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = refused.send(acceptor.accept(stream).await.is_err());
        }
    });
    let world = world(settings()).await;
    let id = world.event(event(&format!("https://{address}/"))).await;
    world.notify(id, "31");
    assert_eq!(world.report().await.failed, 1);
    assert_eq!(saw.recv().await, Some(true));
}

#[tokio::test]
async fn an_event_that_is_gone_or_disabled_or_of_a_suspended_account_tells_nobody() {
    let mut server = Server::start(&[Answer::Status("200 OK")]).await;
    let world = world(settings()).await;
    let [gone, disabled, of_suspended] = [
        world.event(event(&server.url())).await,
        world.event(event(&server.url())).await,
        world.event(event(&server.url())).await,
    ];
    world.desk.remove_event(world.account, gone).await.unwrap();
    let disable = |event: &mut Event| {
        event.is_enabled = false;
        Ok(())
    };
    world.desk.change_event(world.account, disabled, disable).await.unwrap();
    world.notify(gone, "31");
    world.notify(disabled, "31");
    assert_eq!(world.report().await.outdated, 2);
    let user_id = world
        .desk
        .accounts()
        .tenant(world.account)
        .unwrap()
        .account
        .user_id
        .clone();
    world.desk.suspend(&user_id).await.unwrap();
    world.notify(of_suspended, "31");
    world.notify(99, "31");
    assert!(world.door.take(notification(AccountId(99), 1, "31")));
    assert_eq!(world.report().await.outdated, 5);
    server.assert_no_more();
}

#[tokio::test]
async fn a_notification_is_told_as_the_event_is_when_its_turn_comes() {
    let mut before = Server::start(&[Answer::Status("500 No")]).await;
    let mut after = Server::start(&[Answer::Status("200 OK")]).await;
    let world = world(settings()).await;
    let id = world.event(event(&before.url())).await;
    world.notify(id, "1");
    world.notify(id, "2");
    before.next().await;
    let url = after.url();
    world
        .desk
        .change_event(world.account, id, |event| {
            event.post_url = url;
            Ok(())
        })
        .await
        .unwrap();
    assert!(after.next().await.body.contains(r#""current":2,"#));
    world.desk.remove_event(world.account, id).await.unwrap();
    world.report().await;
}

#[tokio::test]
async fn an_events_minimum_interval_leaves_out_what_comes_within_it() {
    let mut server = Server::start(&[Answer::Status("200 OK")]).await;
    let world = world(settings()).await;
    let id = world
        .event(Event {
            interval_ms: 1_000,
            ..event(&server.url())
        })
        .await;
    for after_ms in [0, 1, 999, 1_000, 1_500] {
        let mut notification = notification(world.account, id, &after_ms.to_string());
        notification.at_ms += after_ms;
        assert!(world.door.take(notification));
    }
    for current in ["0", "1000"] {
        assert!(server.next().await.body.contains(&format!(r#""current":{current},"#)));
    }
    let report = world.report().await;
    assert_eq!((report.delivered, report.within_interval), (2, 3));
    server.assert_no_more();
}

#[test]
fn where_there_is_no_room_the_door_says_so_at_once() {
    let (door, inbox) = door();
    let take = |door: &Door, current: &str| door.take(notification(AccountId(1), 1, current));
    for _ in 0..NOTIFICATIONS_MAX {
        assert!(take(&door, "31"));
    }
    assert!(!take(&door, "31"));
    assert_eq!(door.waiting.count.load(Ordering::Relaxed), NOTIFICATIONS_MAX);
    drop(inbox);

    let (door, inbox) = super::door();
    let large = "1".repeat(NOTIFICATIONS_BYTES_MAX / 2);
    assert!(take(&door, &large) && !take(&door, &large) && take(&door, "31"));
    drop(inbox);
    assert!(!take(&door, "31"), "nobody is there");
    assert_eq!(door.waiting.count.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn an_account_that_has_too_much_waiting_loses_what_comes_then() {
    let silent = Server::start(&[Answer::Silence]).await;
    let mut quick = Server::start(&[Answer::Status("200 OK")]).await;
    let world = world(settings()).await;
    let id = world.event(event(&silent.url())).await;
    let max = crate::limits::NOTIFY_ACCOUNT_MAX;
    for _ in 0..max + 5 {
        world.notify(id, "31");
    }
    while world.notifier.report().dropped < 5 {
        tokio::task::yield_now().await;
    }
    let other = world.desk.add_account(NewAccount::default()).await.unwrap().id;
    world.books.put_channel(other, channel(3), "");
    let of_other = world.desk.create_event(other, event(&quick.url())).await.unwrap();
    assert!(world.door.take(notification(other, of_other, "31")));
    quick.next().await;
    assert_eq!(world.notifier.report().dropped, 5);
}

/// A relay that records what it is given. `refuses`: an address that it does not take.
async fn relay(refuses: &'static str) -> (String, UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (taken, mails) = unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(converse(stream, refuses, taken.clone()));
        }
    });
    (format!("smtp://{address}"), mails)
}

async fn converse(stream: TcpStream, refuses: &'static str, taken: UnboundedSender<String>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let mut answer = "220 relay";
    let (mut envelope, mut is_data) = (String::new(), false);
    loop {
        if !answer.is_empty() {
            stream.write_all(format!("{answer}\r\n").as_bytes()).await.ok()?;
        }
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        envelope.push_str(&line);
        answer = match line.split(' ').next().unwrap_or_default().trim_end() {
            "." if is_data => {
                is_data = false;
                taken.send(std::mem::take(&mut envelope)).ok()?;
                "250 taken"
            }
            _ if is_data => "",
            "EHLO" => {
                envelope.clear();
                "250 relay"
            }
            "RCPT" if !refuses.is_empty() && line.contains(refuses) => "550 nobody of that name",
            "DATA" => {
                is_data = true;
                "354 go on"
            }
            "QUIT" => "221 bye",
            _ => "250 so be it",
        };
    }
}

fn mail_event() -> Event {
    Event {
        notify_type: NotifyType::Email,
        ..event("")
    }
}

async fn world_with_mail(relay: &str, email1: &str, email2: &str) -> World {
    let world = world(NotifySettings {
        mail: Some(MailSettings::parse(relay, "Skein <skein@example.org>").unwrap()),
        ..settings()
    })
    .await;
    let change = UserChange {
        email1: Some(email1.to_owned()),
        email2: Some(email2.to_owned()),
        locale: Some("Europe/Vienna".to_owned()),
        ..UserChange::default()
    };
    world.desk.change_user(world.account, change).await.unwrap();
    world
}

#[tokio::test]
async fn a_mail_goes_to_both_addresses_of_the_account() {
    let (relay, mut mails) = relay("").await;
    let world = world_with_mail(&relay, "a@example.org", "b@example.org").await;
    let id = world.event(mail_event()).await;
    world.notify(id, "31.2");
    for to in ["a@example.org", "b@example.org"] {
        let mail = mails.recv().await.unwrap();
        for part in [
            "MAIL FROM:<skein@example.org>",
            &format!("RCPT TO:<{to}>"),
            "From: Skein <skein@example.org>",
            &format!("To: {to}"),
            "Subject: well too warm\r\n",
            "temp crossed its limit. Current:31.2 > Threshold:30\r\n",
            "Channel: 3 water\r\n",
            "2026-03-04 10:02:11 +01:00",
        ] {
            assert!(mail.contains(part), "{part} is not in {mail}");
        }
    }
    assert_eq!(world.report().await.mailed, 1);
}

#[tokio::test]
async fn an_address_that_the_relay_refuses_does_not_keep_the_other_from_its_mail() {
    let (relay, mut mails) = relay("bad@").await;
    let world = world_with_mail(&relay, "bad@example.org", "b@example.org").await;
    let id = world.event(mail_event()).await;
    world.notify(id, "31");
    assert!(mails.recv().await.unwrap().contains("RCPT TO:<b@example.org>"));
    assert_eq!(world.report().await.mailed, 1);
    let none = UserChange {
        email2: Some(String::new()),
        ..UserChange::default()
    };
    world.desk.change_user(world.account, none).await.unwrap();
    world.notify(id, "31");
    let report = world.report().await;
    assert_eq!(
        (report.mailed, report.failed, report.retries),
        (1, 1, 0),
        "a refusal is final"
    );
}

#[tokio::test]
async fn what_an_account_or_a_device_writes_is_never_a_header_of_its_own() {
    let (relay, mut mails) = relay("").await;
    let world = world_with_mail(&relay, "a@example.org", "").await;
    world.books.put_channel(world.account, channel(3), "wa\r\nX-Channel: 1");
    let id = world
        .event(Event {
            description: "warm\r\nBcc: all@example.org\r\n\r\n<html>\r\n.\r\nMAIL FROM:<x@example.org>\u{2028}é"
                .to_owned(),
            source: "s\r\nX-Source: 1".to_owned(),
            ..mail_event()
        })
        .await;
    world.notify(id, r#""31\r\nX-Current: 1\r\n.\r\nQUIT\r\n""#);
    let mail = mails.recv().await.unwrap();
    let (head, _) = mail.split_once("\r\n\r\n").unwrap();
    let names: Vec<&str> = head
        .lines()
        .skip_while(|line| !line.starts_with("From:"))
        .filter(|line| !line.starts_with(' '))
        .map(|line| line.split(':').next().unwrap())
        .collect();
    let known = [
        "From",
        "To",
        "Subject",
        "Message-ID",
        "Content-Type",
        "Content-Transfer-Encoding",
        "Date",
        "MIME-Version",
    ];
    assert!(names.iter().all(|name| known.contains(name)), "{head}");
    assert_eq!(mail.matches("RCPT TO").count(), 1, "{mail}");
    assert_eq!(world.report().await.mailed, 1);
    assert!(mails.try_recv().is_err());
}

#[tokio::test]
async fn an_account_has_so_many_mails_a_day_and_no_more() {
    let (relay, mut mails) = relay("").await;
    let world = world_with_mail(&relay, "a@example.org", "").await;
    let id = world.event(mail_event()).await;
    let max = crate::limits::MAILS_PER_DAY_MAX;
    for _ in 0..max + 3 {
        world.notify(id, "31");
    }
    let report = world.report().await;
    assert_eq!((report.mailed, report.mails_over_limit), (u64::from(max), 3));
    let taken = std::iter::from_fn(|| mails.try_recv().ok()).count();
    assert_eq!(taken, max as usize);
}

#[tokio::test]
async fn a_relay_that_is_down_is_tried_again_and_without_one_the_mail_is_logged() {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let world = world_with_mail(&format!("smtp://127.0.0.1:{port}"), "a@example.org", "").await;
    let id = world.event(mail_event()).await;
    world.notify(id, "31");
    let report = world.report().await;
    assert_eq!((report.failed, report.retries), (1, 2));

    let world = super::tests::world(settings()).await;
    let id = world.event(mail_event()).await;
    world.notify(id, "31");
    assert_eq!(world.report().await.mails_logged, 1);
}
