//! The filters with wildcards, as a trie of topic levels.
//!
//! ```text
//! root ─ sport ─┬─ tennis ── (+) ── score          sport/tennis/+/score    end of `score`
//!               └─ multi                           sport/#                 multi of `sport`
//! ```
//!
//! Owns    the nodes, and each node's copy of its level; of a filter it knows the id only.
//! Called  by `filters`, which keeps filters without a wildcard out of here.
//! Holds   - a node leads to at least one filter: the last filter below a node takes the node with it;
//!         - literal children are found by one table over all nodes, keyed by (parent, level); `+` and `#` are fields;
//!         - a match visits only nodes whose path matches, never one twice, without recursion: a topic may have 65,536
//!           levels; its work is bounded by the nodes of the trie and by the levels of the topic;
//!         - the order of what a match finds follows from the filters alone, not from the hash key.

use std::hash::{BuildHasher, Hasher};

use ahash::RandomState;

use super::id_table::{IdTable, fold};
use super::pages::Pages;
use super::text::Text;
use crate::mqtt::topic::TopicName;

const NONE: u32 = u32::MAX;
const ROOT: u32 = 0;
/// The bytes of a level that fit in its node.
const LEVEL_INLINE: usize = 38;

/// One cache line.
#[repr(align(64))]
struct Node {
    /// The literal level that leads here; empty for a `+` node (and for an empty level).
    level: Text<LEVEL_INLINE>,
    /// Under which the level is found from `parent`.
    hash: u32,
    parent: u32,
    /// Literal children in the table.
    literals: u32,
    /// The `+` child.
    plus: u32,
    /// The filter that ends with this level.
    end: u32,
    /// The filter that ends with `/#` below this level.
    multi: u32,
}

const _: () = assert!(size_of::<Node>() == 64);

pub(super) struct WildcardTrie {
    nodes: Pages<Node>,
    children: IdTable,
    /// Nodes whose path matches the levels read so far, and those of one level more: empty between matches.
    here: Vec<u32>,
    below: Vec<u32>,
}

impl WildcardTrie {
    pub fn new() -> Self {
        let mut nodes = Pages::new();
        let root = nodes.insert(Node::new("", 0, NONE));
        debug_assert_eq!(root, ROOT);
        WildcardTrie {
            nodes,
            children: IdTable::new(),
            here: Vec::new(),
            below: Vec::new(),
        }
    }

    /// `filter` has a wildcard and is not in the trie.
    pub fn insert(&mut self, hasher: &RandomState, filter: &str, id: u32) {
        let mut at = ROOT;
        for level in filter.split('/') {
            at = match level {
                "#" => {
                    let before = std::mem::replace(&mut self.nodes[at].multi, id);
                    debug_assert_eq!(before, NONE);
                    return;
                }
                "+" => match self.nodes[at].plus {
                    NONE => {
                        let child = self.nodes.insert(Node::new("", 0, at));
                        self.nodes[at].plus = child;
                        child
                    }
                    child => child,
                },
                literal => {
                    let hash = child_hash(at, level_hash(hasher, literal.as_bytes()));
                    self.literal_child(at, hash, literal.as_bytes()).unwrap_or_else(|| {
                        let child = self.nodes.insert(Node::new(literal, hash, at));
                        self.children.insert(hash, child);
                        self.nodes[at].literals += 1;
                        child
                    })
                }
            };
        }
        let before = std::mem::replace(&mut self.nodes[at].end, id);
        debug_assert_eq!(before, NONE);
    }

    /// `filter` is in the trie.
    pub fn remove(&mut self, hasher: &RandomState, filter: &str) {
        let mut at = ROOT;
        let mut multi = false;
        for level in filter.split('/') {
            at = match level {
                "#" => {
                    multi = true;
                    break;
                }
                "+" => self.nodes[at].plus,
                literal => {
                    let hash = child_hash(at, level_hash(hasher, literal.as_bytes()));
                    self.literal_child(at, hash, literal.as_bytes())
                        .expect("the filter is in the trie")
                }
            };
        }
        let last = &mut self.nodes[at];
        *(if multi { &mut last.multi } else { &mut last.end }) = NONE;

        while at != ROOT && self.nodes[at].is_unused() {
            let Node { hash, parent, .. } = self.nodes.remove(at);
            let above = &mut self.nodes[parent];
            if above.plus == at {
                above.plus = NONE;
            } else {
                above.literals -= 1;
                self.children.remove(hash, at);
            }
            at = parent;
        }
        if self.nodes.len() == 1 && self.nodes[ROOT].is_unused() {
            *self = WildcardTrie::new();
        }
    }

    /// Appends the id of every filter that matches `topic`.
    pub fn matches(&mut self, hasher: &RandomState, topic: TopicName<'_>, found: &mut Vec<u32>) {
        let root = &self.nodes[ROOT];
        if root.is_unused() {
            return;
        }
        let topic = topic.as_str().as_bytes();
        let (first, mut rest) = split_level(topic);
        let hash = level_hash(hasher, first);
        if let Some(child) = self.literal_child_of(root, ROOT, hash, first) {
            self.here.push(child);
        }
        // A leading wildcard never matches a topic that starts with `$` [MQTT-4.7.2-1].
        if topic.first() != Some(&b'$') {
            if root.multi != NONE {
                found.push(root.multi);
            }
            if root.plus != NONE {
                self.here.push(root.plus);
            }
        }
        while let Some(text) = rest
            && !self.here.is_empty()
        {
            let (level, after) = split_level(text);
            rest = after;
            let hash = level_hash(hasher, level);
            let mut here = std::mem::take(&mut self.here);
            let mut below = std::mem::take(&mut self.below);
            for at in here.drain(..) {
                let node = &self.nodes[at];
                if node.multi != NONE {
                    found.push(node.multi);
                }
                below.extend(self.literal_child_of(node, at, hash, level));
                if node.plus != NONE {
                    below.push(node.plus);
                }
            }
            (self.here, self.below) = (below, here);
        }
        for at in self.here.drain(..) {
            let node = &self.nodes[at];
            if node.end != NONE {
                found.push(node.end);
            }
            // `sport/#` matches `sport` (section 4.7.1.2).
            if node.multi != NONE {
                found.push(node.multi);
            }
        }
    }

    #[cfg(test)]
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    fn literal_child_of(&self, node: &Node, at: u32, level_hash: u64, level: &[u8]) -> Option<u32> {
        if node.literals == 0 {
            return None;
        }
        self.literal_child(at, child_hash(at, level_hash), level)
    }

    fn literal_child(&self, at: u32, hash: u32, level: &[u8]) -> Option<u32> {
        self.children.find(hash, |child| {
            let child = &self.nodes[child];
            child.parent == at && child.level.as_bytes() == level
        })
    }
}

impl Node {
    fn new(level: &str, hash: u32, parent: u32) -> Node {
        Node {
            level: Text::new(level),
            hash,
            parent,
            literals: 0,
            plus: NONE,
            end: NONE,
            multi: NONE,
        }
    }

    fn is_unused(&self) -> bool {
        self.literals == 0 && self.plus == NONE && self.end == NONE && self.multi == NONE
    }
}

fn split_level(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    match text.iter().position(|&byte| byte == b'/') {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

fn level_hash(hasher: &RandomState, level: &[u8]) -> u64 {
    let mut hasher = hasher.build_hasher();
    hasher.write(level);
    hasher.finish()
}

/// One keyed hash per level serves every parent. Parents are told apart by a multiplication; who does not know the
/// level hashes cannot choose levels that collide.
fn child_hash(parent: u32, level_hash: u64) -> u32 {
    let mixed = (level_hash ^ u64::from(parent)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    fold(mixed)
}
