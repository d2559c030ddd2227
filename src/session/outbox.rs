//! Encoded bytes that wait for one socket.
//!
//! Owns    one contiguous buffer, which exists only while something is unsent; an idle connection holds none.
//! Called  by everything that sends to a client; emptied by the shell through `Shard::unsent` and `Input::Sent`.
//! Holds   - bytes leave in the order they were written;
//!         - whoever writes asks for room first: QoS 0 is dropped where there is none, QoS 1 and 2 wait in the queue,
//!           answers (acknowledgements, PINGRESP) are owed and always written. They are bounded by what is read.

/// Kept buffers of one core, most recently used first.
///
/// A fan-out fills a thousand outboxes in one turn and empties them in the next: growing each from nothing would cost
/// five reallocations. Bounded in bytes, so that a burst does not stay in memory.
pub struct BufferPool {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

/// Bytes of capacity one core keeps for outboxes to come.
const POOL_BYTES_MAX: usize = 2 * 1024 * 1024;
/// A larger buffer is freed when it has been emptied.
const POOLED_BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Bytes that the socket has taken stay in front of the others until they are so many, and this part of all: a slow socket never
/// empties its outbox. So for each byte taken at most three are moved, and a third more is held than is unsent.
const TAKEN_BYTES_MIN: usize = 4 * 1024;
const TAKEN_PART: usize = 4;
/// A new buffer holds a handful of small packets.
const BUFFER_BYTES_MIN: usize = 256;

impl BufferPool {
    pub fn new() -> BufferPool {
        BufferPool {
            buffers: Vec::new(),
            bytes: 0,
        }
    }

    fn take(&mut self) -> Vec<u8> {
        match self.buffers.pop() {
            Some(buffer) => {
                self.bytes -= buffer.capacity();
                buffer
            }
            None => Vec::with_capacity(BUFFER_BYTES_MIN),
        }
    }

    fn put(&mut self, mut buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        if capacity <= POOLED_BUFFER_BYTES_MAX && self.bytes + capacity <= POOL_BYTES_MAX {
            buffer.clear();
            self.bytes += capacity;
            self.buffers.push(buffer);
        }
    }
}

impl Default for BufferPool {
    fn default() -> Self {
        Self::new()
    }
}

/// The unsent bytes of one connection.
#[derive(Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    /// How many of `bytes` the socket has taken.
    taken: usize,
}

impl Outbox {
    pub fn unsent(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    pub fn len(&self) -> usize {
        self.bytes.len() - self.taken
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the next packet is appended.
    #[inline]
    pub fn writer(&mut self, pool: &mut BufferPool) -> &mut Vec<u8> {
        if self.bytes.capacity() == 0 {
            self.bytes = pool.take();
        }
        &mut self.bytes
    }

    /// The socket has taken `count` more bytes.
    pub fn take(&mut self, count: usize, pool: &mut BufferPool) {
        self.taken += count;
        assert!(
            self.taken <= self.bytes.len(),
            "a socket cannot take more than is unsent"
        );
        if self.taken == self.bytes.len() {
            self.clear(pool);
        } else if self.taken >= TAKEN_BYTES_MIN && self.taken * TAKEN_PART >= self.bytes.len() {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
    }

    /// Forgets everything and gives the buffer back.
    pub fn clear(&mut self, pool: &mut BufferPool) {
        self.taken = 0;
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.capacity() > 0 {
            pool.put(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_outbox_holds_no_buffer() {
        let mut pool = BufferPool::new();
        let mut outbox = Outbox::default();
        outbox.writer(&mut pool).extend_from_slice(b"abc");
        outbox.take(2, &mut pool);
        assert_eq!(outbox.unsent(), b"c");
        outbox.take(1, &mut pool);
        assert!(outbox.is_empty());
        assert_eq!(outbox.bytes.capacity(), 0);
        assert_eq!(pool.buffers.len(), 1);
    }

    #[test]
    fn a_slow_socket_does_not_make_its_outbox_grow() {
        let mut pool = BufferPool::new();
        let mut outbox = Outbox::default();
        let mut expected = std::collections::VecDeque::new();
        for round in 0..1_000 {
            let packet = [round as u8; 1_000];
            while outbox.len() + packet.len() <= 40_000 {
                outbox.writer(&mut pool).extend_from_slice(&packet);
                expected.extend(packet);
            }
            let count = 1 + round * 7 % 3_000;
            assert!(expected.drain(..count).eq(outbox.unsent()[..count].iter().copied()));
            outbox.take(count, &mut pool);
            assert!(outbox.bytes.len() <= outbox.len() + (outbox.len() / 3).max(TAKEN_BYTES_MIN));
        }
        assert!(outbox.bytes.capacity() <= 64 * 1024, "{}", outbox.bytes.capacity());
    }

    #[test]
    fn the_pool_keeps_a_bounded_number_of_bytes_and_no_large_buffer() {
        let mut pool = BufferPool::new();
        pool.put(Vec::with_capacity(POOLED_BUFFER_BYTES_MAX + 1));
        assert!(pool.buffers.is_empty());
        for _ in 0..1_000 {
            pool.put(Vec::with_capacity(POOLED_BUFFER_BYTES_MAX));
        }
        assert_eq!(pool.bytes, POOL_BYTES_MAX);
    }
}
