//! When a Will is published and when it is discarded (section 3.1.2.5).

/// How a Network Connection ended, as far as its Will is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The client sent DISCONNECT: the Will is deleted, never published [MQTT-3.1.2-10] [MQTT-3.14.4-3].
    Graceful,
    /// Everything else, takeover and broken rules included [MQTT-3.1.2-8].
    Abnormal,
}

impl Ending {
    pub const fn publishes_will(self) -> bool {
        matches!(self, Ending::Abnormal)
    }
}
