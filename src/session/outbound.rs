use std::sync::Arc;

/// A message that outlives the buffer it came in: topic and payload in one allocation, shared by the Sessions that hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedMessage {
    bytes: Arc<[u8]>,
    topic_len: u16,
}
