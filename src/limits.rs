//! Every bound of the broker, in one place. A flag overrides what an operator may want to change; the rest is fixed
//! here, with its unit in the name and what gives way at the bound in its comment.

/// Largest MQTT packet, fixed header included (`--max-packet`). A larger one closes its connection on the header alone.
pub const PACKET_BYTES_MAX: usize = 256 * 1024;
/// Largest value the Remaining Length field can carry (MQTT 3.1.1 section 2.2.3).
pub const REMAINING_LENGTH_MAX: usize = 268_435_455;
/// Largest CONNECT: five strings of 65,535 bytes would be legal; nobody needs them before having been let in.
pub const CONNECT_BYTES_MAX: usize = 64 * 1024;

/// Head of a WebSocket handshake, its empty line included, and the headers in it; a longer one is answered with 431.
pub const WEBSOCKET_HANDSHAKE_BYTES_MAX: usize = 8 * 1024;
pub const WEBSOCKET_HEADERS_MAX: usize = 64;
/// Payload of one WebSocket frame: any MQTT packet fits. Frames are decoded as they stream by, so nothing of this size is
/// ever held; a larger one closes its connection on the header alone, with close code 1009.
pub const WEBSOCKET_FRAME_BYTES_MAX: usize = 256 * 1024 * 1024 + 64 * 1024;

/// Client Identifier length in `--access open` (`--client-id-max`); a longer one is refused with return code 2.
pub const CLIENT_ID_CHARS_MAX: usize = 65_535;
/// Connections over all cores (`--max-connections`); beyond it a CONNECT is answered with return code 3.
pub const CONNECTIONS_MAX: usize = 1_000_000;
/// Filters one Session may hold (`--max-subscriptions`); a further one gets 0x80 (level 3: granted, never delivered).
pub const SUBSCRIPTIONS_PER_SESSION_MAX: usize = 10_000;
/// Time from accept to a whole CONNECT (`--connect-timeout`); then the connection is closed.
pub const CONNECT_TIMEOUT_MS: u64 = 10_000;

/// QoS 1 and 2 deliveries unacknowledged by one client (`--max-inflight`); the rest waits in its queue.
pub const INFLIGHT_MAX: usize = 256;
/// Packet Identifiers between the oldest unacknowledged and the newest, in multiples of the in-flight window: bounds
/// what a client costs that acknowledges everything but one.
pub const INFLIGHT_SPAN_FACTOR: usize = 16;
/// Messages that wait for one Session (`--max-queued`); then the newest is dropped. QoS 0 may fill half of it.
pub const QUEUED_MAX: usize = 10_000;
/// Bytes that wait for one Session (`--max-queued-bytes`), topic names included; then the newest is dropped.
pub const QUEUED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Messages of a durable Session that wait in memory for a connected client, and their bytes; the rest is on disk only.
pub const QUEUE_WINDOW_MESSAGES: usize = 1_024;
pub const QUEUE_WINDOW_BYTES: usize = 256 * 1024;
/// Payloads of retained messages in memory over all cores (`--retained-memory`); the rest is on disk only.
pub const RETAINED_MEMORY_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Records of one core, in bytes, that the store has not confirmed; beyond it publishers pause.
pub const STORE_BACKLOG_BYTES_MAX: usize = 32 * 1024 * 1024;
/// How long the full queue of a connected client holds back those who publish to it (`--overflow-wait`); then what comes is
/// dropped. What they had sent before they were stopped is still taken, up to as much again as the queue's bound.
pub const OVERFLOW_WAIT_MS: u64 = 1_000;
/// Encoded bytes one connection may hold that its socket has not taken (`--max-outbox`); beyond it QoS 0 is dropped
/// and QoS 1 and 2 wait in the queue. One packet may overshoot, a third more may be held that has left, and the
/// buffer doubles as it grows: it takes up to twice this of memory.
pub const OUTBOX_BYTES_MAX: usize = 256 * 1024;
/// An outbox this full is written at the end of its turn, not at the end of the batch.
pub const OUTBOX_FLUSH_BYTES: usize = 64 * 1024;
/// PUBLISH packets of one connection whose acknowledgement waits for other cores or the disk; then it is not read. What came in one
/// read may overshoot it.
pub const RECEIPTS_PER_CONNECTION_MAX: usize = 4_096;

/// Descriptors of a core that are no connection: runtime, epoll set, listeners, bells and passages of all cores, files.
pub const DESCRIPTORS_BESIDE_PER_CORE: u64 = 16;
/// Leading topic levels that choose the owner core (`--shard-levels`).
pub const SHARD_LEVELS: usize = 3;
/// Cores (`--cores`): the mesh is cores x cores rings of about 1 KB, two per ordered pair.
pub const CORES_MAX: usize = 256;
/// Bytes for one peer and lane that wait for room in its ring; beyond it the publishing connection pauses.
pub const MESH_BACKLOG_BYTES_MAX: usize = 256 * 1024;
/// Parcels in one ring of the mesh.
pub const MESH_RING_PARCELS: usize = 16;
/// Retained messages that ride in one answer to a subscriber's core.
pub const RETAINED_CHUNK_MESSAGES: usize = 64;
/// Bytes after which such an answer is closed, at least one message being in it.
pub const RETAINED_CHUNK_BYTES: usize = 64 * 1024;

/// Bytes read from one socket in one turn: one scratch buffer per core, no buffer per connection.
pub const READ_BYTES_PER_TURN: usize = 64 * 1024;
/// Bytes of an outbox sealed for one send over TLS; what the socket does not take of the records waits beside the outbox.
pub const SEAL_BYTES_PER_WRITE: usize = 64 * 1024;
/// Time that TLS handshakes may take of one batch, overshot by one step of one of them; the others wait for the next batch,
/// behind the messages of those who are connected.
pub const HANDSHAKE_MS_PER_BATCH: u64 = 2;
/// Readiness events taken in one batch.
pub const EVENTS_PER_BATCH: usize = 256;
/// A socket is written to at most this often (`--write-interval`), so that what comes for it meanwhile leaves in one write; an
/// outbox that is past `OUTBOX_FLUSH_BYTES` waits for nothing. A write to a socket costs about 7 us here, whatever is in it.
pub const WRITE_INTERVAL_US: u64 = 100;
/// When a batch has written to this many sockets, the core writes no more for a part of the time that took, and reads on: what
/// several cores send it, each in its own time, leaves together. `benches/scaling.rs` has what it does for a fan-out.
pub const FLUSH_REST_SOCKETS_MIN: usize = 32;
pub const FLUSH_REST_PART: u32 = 4;
pub const FLUSH_REST_US_MAX: u64 = 2_000;
/// A core that has nothing to do but to wait for a time to write looks for more to do this often.
pub const NAP_US_MAX: u64 = 100;
/// PUBLISH packets that are delivered as one piece (`mqtt::run`), at least one being in it: by this much more than by one
/// packet a bound on bytes that wait may be overshot.
pub const RUN_BYTES_MAX: usize = 32 * 1024;
/// Connections accepted from one listener in one batch; the rest waits in its backlog.
pub const ACCEPTS_PER_BATCH: usize = 64;
/// A batch in which full outboxes drop messages reads no more after this time: their sockets may take some again.
pub const DROPPING_BATCH_US: u64 = 200;
/// Parcels taken from the mesh per lane in one batch; the rest waits in its ring.
pub const MESH_PARCELS_PER_BATCH: usize = 64;
/// Resolution of every deadline: a silent client goes at most this much after its time, never before it.
pub const DEADLINE_TICK_MS: u64 = 250;
/// Longest header of a proxy before a connection's own bytes: what fits the smallest segment of TCP. A longer one closes its
/// connection on the length it announces.
pub const PROXY_HEADER_BYTES_MAX: usize = 536;
/// Longest header of version 1, its end of line included (PROXY protocol, section 2.1).
pub const PROXY_TEXT_BYTES_MAX: usize = 107;
/// How often the files of the certificate are looked at: a renewed one is in use at most this much later.
pub const CERTIFICATE_POLL_MS: u64 = 2_000;
/// A signal is answered without the cores that have not answered by then.
pub const CORES_ANSWER_MS: u64 = 1_000;
/// Largest file of certificates or keys: the bundle of all public authorities has a quarter of it. A larger one is refused.
pub const CERTIFICATE_FILE_BYTES_MAX: u64 = 1024 * 1024;
/// A block of this size or more goes back to the system when it is freed (glibc); above all buffers that come and go with messages.
pub const MALLOC_MAPPED_BYTES_MIN: i32 = 512 * 1024;
/// Stop: from SIGTERM to exit 0.
pub const STOP_TIMEOUT_MS: u64 = 10_000;

// The platform.

/// Client Identifier length in `--access platform` (`--client-id-max`).
pub const PLATFORM_CLIENT_ID_CHARS_MAX: usize = 23;
/// Characters of a device id, and of a tag.
pub const NAME_CHARS_MAX: usize = 64;
/// Bits of an account's id, which is never given twice: what the table of devices has room for.
pub const ACCOUNT_ID_BITS: u32 = 29;
/// Objects and arrays within each other in a stored value. serde_json, which many a reader is built on, stops at 127, and an
/// answer of the API puts its own around the value.
pub const VALUE_DEPTH_MAX: usize = 120;
/// Fields of one aggregate, the first that are found, and the bytes of a field's path; further ones are left out.
pub const AGGREGATE_PATHS_MAX: usize = 1_000;
pub const AGGREGATE_PATH_BYTES_MAX: usize = 1_024;
/// Devices of a new account (`skein account add --max-devices`); a further one is refused with `MAX_DEVICE_REACH`.
pub const ACCOUNT_DEVICES_MAX: u32 = 1_000;
/// Bytes of a new account's datapoints, keys included (`skein account add --max-storage`); then the oldest go.
pub const ACCOUNT_STORAGE_BYTES_MAX: u64 = 5_242_880_000;
/// How often those are looked at who wait for their account's turn to publish (`--account-publish-rate`): so evenly a flood
/// that is held back comes.
pub const ACCOUNT_TURN_MS: u64 = 20;
/// Calls of the HTTP API in a second by one account (`--api-rate`), and times that one device may send over HTTP
/// (`--connector-rate`); a further one is answered with 429.
pub const API_CALLS_PER_S: u32 = 20;
pub const CONNECTOR_SENDS_PER_S: u32 = 1;
/// Body of an HTTP request (`--api-max-body`); a larger one is answered with 413.
pub const API_BODY_BYTES_MAX: usize = 64 * 1024;
/// Rows of a stream in one answer; more are cut off, and `X-TRUNCATED` says so.
pub const STREAM_ROWS_MAX: usize = 10_000;
/// Slots of sessions that a core looks through for one question; the asker comes again for the rest.
pub const SESSION_SLOTS_PER_QUESTION: u32 = 8_192;
/// Accounts of a broker. Beyond it none is added.
pub const ACCOUNTS_MAX: usize = 100_000;
/// Events of one account, all of which are in memory. Beyond it none is created.
pub const EVENTS_PER_ACCOUNT_MAX: usize = 1_000;
/// Characters of free texts (descriptions, names of people and places), of a mail address (RFC 5321), of a webhook's URL, and
/// of an event's source and threshold. A longer one is refused.
pub const TEXT_CHARS_MAX: usize = 1_024;
pub const EMAIL_CHARS_MAX: usize = 254;
pub const POST_URL_CHARS_MAX: usize = 2_048;
pub const RULE_CHARS_MAX: usize = 256;
/// Connections of `skein account` that are served at once; a further one waits. A line of one is at most so long, must be
/// there within this time, and its answer be taken within that; else the connection is closed.
pub const ADMIN_CONNECTIONS_MAX: usize = 16;
pub const ADMIN_LINE_BYTES_MAX: usize = 64 * 1024;
pub const ADMIN_REQUEST_MS: u64 = 10_000;
pub const ADMIN_ANSWER_MS: u64 = 10_000;
/// Longest time that an event may keep quiet after a notification.
pub const EVENT_INTERVAL_MS_MAX: u64 = 7 * 24 * 3_600 * 1_000;
/// How often a core looks at the clock of the host, for the time of datapoints.
pub const CLOCK_LOOK_MS: u64 = 1_000;
/// How often at most a core says that it has refused data.
pub const REFUSED_LOG_MS: u64 = 10_000;
/// Notifications that wait to be told, and their bytes; a further one is dropped and counted: ingestion waits for nobody.
pub const NOTIFICATIONS_MAX: usize = 10_000;
pub const NOTIFICATIONS_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Those of one account; a further one is dropped and counted.
pub const NOTIFY_ACCOUNT_MAX: usize = 1_000;
pub const NOTIFY_ACCOUNT_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Webhooks that are posted at once, mails that are sent at once, and both of one account; a further one waits for its turn.
pub const WEBHOOKS_AT_ONCE_MAX: usize = 64;
pub const MAILS_AT_ONCE_MAX: usize = 4;
pub const NOTIFY_AT_ONCE_PER_ACCOUNT_MAX: usize = 4;
/// Time before the second attempt, and before the third and last.
pub const NOTIFY_RETRY_MS: [u64; 2] = [1_000, 4_000];
/// At most one warning about a failed notification in so long; the others are for `--log debug`.
pub const NOTIFY_LOG_MS: u64 = 1_000;
/// Time for one attempt of a webhook, from looking up its host to the head of the answer; then it has failed.
pub const WEBHOOK_TIMEOUT_MS: u64 = 5_000;
/// A connection to a webhook's host is kept so long for the next.
pub const WEBHOOK_IDLE_MS: u64 = 10_000;
/// Hosts that are looked up at once, each of which blocks a thread; a further one waits, within its timeout.
pub const WEBHOOK_LOOKUPS_MAX: usize = 16;
/// Addresses of a host that are tried; the rest is left.
pub const WEBHOOK_ADDRESSES_MAX: usize = 16;
/// Mails to one account in a day of UTC; a further one is not sent, and counted.
pub const MAILS_PER_DAY_MAX: u32 = 50;
/// Time for one step of a conversation with the mail relay; then the attempt has failed.
pub const MAIL_TIMEOUT_MS: u64 = 10_000;
/// Threads that telling of events may block: of look-ups, of mails, and one that looks into the store.
pub const NOTIFY_THREADS_MAX: usize = WEBHOOK_LOOKUPS_MAX + MAILS_AT_ONCE_MAX + 1;

// The HTTP API.

/// Connections at the same time; more wait to be accepted.
pub const HTTP_CONNECTIONS_MAX: usize = 1_024;
/// Head of a request, and headers in it; a longer one is answered with 431.
pub const HTTP_HEAD_BYTES_MAX: usize = 16 * 1024;
pub const HTTP_HEADERS_MAX: usize = 64;
/// From accept to the end of a TLS handshake, and from there, or from the answer before, to a request's whole head; then the
/// connection is closed.
pub const HTTP_SILENCE_MS: u64 = 30_000;
/// A connection on which no byte moves for this time, at most for twice as long, is closed; so is one whose client has an
/// answer to read and takes less of it than this in that time.
pub const HTTP_STALL_MS: u64 = 45_000;
pub const HTTP_STALL_BYTES: u64 = 128 * 1024;
/// Stop: requests that have begun are answered within this time.
pub const HTTP_STOP_MS: u64 = 1_000;
/// What the answer to a call with a wrong token, or beyond the rate, waits for: a connection that asks without end asks no oftener than
/// one that is let in.
pub const HTTP_REFUSAL_MS: u64 = 50;
/// From a request's head to the whole body; then 408.
pub const HTTP_BODY_TIMEOUT_MS: u64 = 10_000;
/// From a request to its answer; then 503. What was begun is done all the same.
pub const HTTP_ANSWER_TIMEOUT_MS: u64 = 30_000;
/// Bytes of a body that is too large which are read all the same, and for how long, so that the client hears the answer.
pub const HTTP_DRAIN_BYTES_MAX: usize = 1024 * 1024;
pub const HTTP_DRAIN_MS: u64 = 1_000;
/// Requests that change something, at the same time: they go on when their client has hung up. Beyond it, 503.
pub const HTTP_CHANGES_MAX: usize = 4_096;
/// Views of the store at the same time, each on a thread of its own; more wait.
pub const HTTP_VIEWS_MAX: usize = 4;
/// Threads for what else blocks: what tells of events, and a few looks of others. They are there while they are needed.
pub const HTTP_BLOCKING_THREADS_MAX: usize = NOTIFY_THREADS_MAX + 4;
/// How far the threads of the API step back, as of nice(1): where CPUs are short the cores go before them.
pub const HTTP_NICE: i32 = 5;
/// Bytes of one answer of the stream service, overshot by one datapoint; the rest is cut off as beyond `STREAM_ROWS_MAX`.
pub const STREAM_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of answers that their clients have not taken, in all and of one account, but for small ones; a further one is
/// answered with 429.
pub const HTTP_ANSWERS_BYTES_MAX: usize = 256 * 1024 * 1024;
pub const HTTP_ANSWERS_PER_ACCOUNT_BYTES_MAX: usize = 64 * 1024 * 1024;
pub const HTTP_SMALL_ANSWER_BYTES: usize = 64 * 1024;
/// Datapoints looked at in one view of the store; who reads more looks again.
pub const STREAM_LOOKS_PER_VIEW: usize = 4_096;
/// Calls within a second over all accounts that are remembered for that; beyond it everybody gets 429.
pub const RATE_CALLS_MAX: usize = 200_000;
/// Channels of an account, and tags of a channel that are declared or have names; beyond it none is created.
pub const CHANNELS_PER_ACCOUNT_MAX: usize = 10_000;
pub const TAGS_PER_CHANNEL_MAX: usize = 1_000;

// The store on disk.

/// Rows written by one transaction, and the bytes of its records; the rest waits for the next, in order. It bounds for how
/// long one commit makes everybody wait. What one core hands over at once is never divided and may overshoot.
pub const STORE_COMMIT_ROWS_MAX: usize = 32_768;
pub const STORE_COMMIT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Records that nobody waits for are committed after this time, or when so many of them wait.
pub const STORE_LAZY_MS: u64 = 200;
pub const STORE_LAZY_RECORDS_MAX: usize = 2_048;
/// Rows of ended Sessions, and of removed accounts, channels and tags, deleted in one transaction; the rest is for the next.
pub const STORE_PURGE_ROWS_MAX: usize = 2_048;
/// Datapoints that one transaction looks at for those of removed tags.
pub const STORE_PURGE_LOOKS_MAX: usize = 8 * STORE_PURGE_ROWS_MAX;
/// Channels and accounts that the storage thread remembers; beyond it, it forgets all of them and reads their rows again.
pub const STORE_KNOWN_CHANNELS_MAX: usize = 1_000_000;
/// Fetches answered from one view of the store.
pub const STORE_READS_PER_VIEW: usize = 64;
/// A commit that failed is tried again after this time; meanwhile nothing is confirmed.
pub const STORE_RETRY_MS: u64 = 500;
/// Address space for the file at first (`--map-size`), ...
pub const STORE_MAP_BYTES: usize = 1024 * 1024 * 1024;
/// ... doubled when the file needs more, up to this; then the store is full, as a disk is.
pub const STORE_MAP_BYTES_MAX: usize = 1 << 42;
/// The file is kept this much longer than its used part, without taking space on disk for it.
pub const STORE_FILE_AHEAD_BYTES: u64 = 64 * 1024 * 1024;
/// A file up to this size is checked to its last page before it is opened; of a larger one, all but the rows of queues and
/// retained messages: a start must not take longer for a larger backlog.
pub const STORE_CHECK_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Stop: the last commit has this long.
pub const STORE_STOP_MS: u64 = 4_000;

const _: () = assert!(STORE_COMMIT_BYTES_MAX <= STORE_BACKLOG_BYTES_MAX);
const _: () = assert!(STORE_LAZY_RECORDS_MAX <= STORE_COMMIT_ROWS_MAX);
const _: () = assert!(STORE_FILE_AHEAD_BYTES >= 4 * STORE_COMMIT_BYTES_MAX as u64);
const _: () = assert!(STORE_MAP_BYTES < STORE_MAP_BYTES_MAX);
const _: () = assert!(STORE_STOP_MS < STOP_TIMEOUT_MS);
const _: () = assert!(CONNECT_BYTES_MAX <= PACKET_BYTES_MAX);
const _: () = assert!(PACKET_BYTES_MAX <= REMAINING_LENGTH_MAX + 5);
const _: () = assert!(REMAINING_LENGTH_MAX + 5 <= WEBSOCKET_FRAME_BYTES_MAX);
const _: () = assert!(WEBSOCKET_FRAME_BYTES_MAX <= u32::MAX as usize);
const _: () = assert!(OUTBOX_FLUSH_BYTES <= OUTBOX_BYTES_MAX);
const _: () = assert!(INFLIGHT_MAX * INFLIGHT_SPAN_FACTOR < u16::MAX as usize);
const _: () = assert!(PROXY_TEXT_BYTES_MAX <= PROXY_HEADER_BYTES_MAX);
const _: () = assert!(PROXY_HEADER_BYTES_MAX <= READ_BYTES_PER_TURN);
const _: () = assert!(CORES_MAX <= u16::MAX as usize);
const _: () = assert!(RETAINED_CHUNK_BYTES <= MESH_BACKLOG_BYTES_MAX);
const _: () = assert!(HTTP_BODY_TIMEOUT_MS < HTTP_ANSWER_TIMEOUT_MS);
const _: () = assert!(HTTP_ANSWER_TIMEOUT_MS < HTTP_STALL_MS && HTTP_SILENCE_MS < HTTP_STALL_MS);
const _: () = assert!(HTTP_STOP_MS < STOP_TIMEOUT_MS - STORE_STOP_MS);
