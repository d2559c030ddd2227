//! The bytes of an LMDB data file: format 1, 64 bits, little-endian, as `mdb.c` of LMDB 0.9.70 writes them.
//!
//! Called  by `store::pages`, with bytes that may be anything.
//! Gives   what is there, or a few words on what is wrong; never a panic.
//!
//! ```text
//! page 0, 1     header 16 │ magic 4 │ version 4 │ address 8 │ map size 8 │ record 48, free list │ record 48, tables │
//!                         │ last page 8 │ transaction 8
//! branch, leaf  header 16 │ offsets of the nodes, 2 each, up to `lower` │ free │ nodes, from `upper` to the end of the page
//! overflow      header 16 │ value, on into the pages behind, which have no header
//! header        page number 8 │ pad 2 │ flags 2 │ lower 2, upper 2  or  pages of the run 4
//! node          leaf: size of the value 4, flags 2; branch: child 6 │ size of the key 2 │ key │ value, if any
//! record        pad 4 │ flags 2 │ depth 2 │ branch pages 8 │ leaf pages 8 │ overflow pages 8 │ entries 8 │ root 8
//! ```

const MAGIC: u32 = 0xBEEF_C0DE;
const VERSION: u32 = 1;
const PAGE_BYTES_MIN: u32 = 512;
const PAGE_BYTES_MAX: u32 = 0x8000;
pub const PAGE_HEADER_BYTES: usize = 16;
pub const META_BYTES: usize = PAGE_HEADER_BYTES + 136;
pub const RECORD_BYTES: usize = 48;
const NODE_HEADER_BYTES: usize = 8;
const KEY_BYTES_MAX: usize = 511;
/// As deep as a cursor of LMDB can go.
const DEPTH_MAX: u16 = 32;
const NO_ROOT: u64 = u64::MAX;

const PAGE_BRANCH: u16 = 0x01;
const PAGE_LEAF: u16 = 0x02;
const PAGE_OVERFLOW: u16 = 0x04;
const PAGE_META: u16 = 0x08;

/// The value is in a run of overflow pages, the node has its first page's number.
pub const NODE_OVERFLOW: u16 = 0x01;
/// The value is the record of a table.
pub const NODE_TABLE: u16 = 0x02;

const TABLE_INTEGER_KEY: u16 = 0x08;
const ENVIRONMENT_NO_SUB_DIR: u16 = 0x4000;

/// The start of one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    pub page_size: u32,
    pub map_size: u64,
    pub free: Record,
    pub main: Record,
    pub last_page: u64,
    pub transaction: u64,
}

/// What a tree says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub flags: u16,
    pub depth: u16,
    pub branch_pages: u64,
    pub leaf_pages: u64,
    pub overflow_pages: u64,
    pub entries: u64,
    pub root: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Branch,
    Leaf,
}

#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// Of a leaf.
    pub flags: u16,
    /// Of a leaf: the size of the value, here or in overflow pages.
    pub value_bytes: u64,
    /// Of a branch.
    pub child: u64,
    pub key: &'a [u8],
    /// The value, or the first page of where it is; empty in a branch.
    pub value: &'a [u8],
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl Meta {
    /// `number` is 0 or 1. What LMDB would refuse is refused here too, and what it would believe to its harm.
    pub fn parse(bytes: &[u8], number: u64) -> Result<Meta, String> {
        Meta::fields(bytes, number).unwrap_or_else(|| Err("is cut short".into()))
    }

    fn fields(bytes: &[u8], number: u64) -> Option<Result<Meta, String>> {
        let header = (u64_at(bytes, 0)?, u16_at(bytes, 10)?);
        let body = bytes.get(PAGE_HEADER_BYTES..)?;
        let (magic, version) = (u32_at(body, 0)?, u32_at(body, 4)?);
        if header != (number, PAGE_META) || magic != MAGIC {
            return Some(Err("is no meta page of an LMDB file".into()));
        }
        if version != VERSION {
            return Some(Err(format!(
                "is of format {version}, and this program reads format {VERSION}"
            )));
        }
        let free_list = body.get(24..24 + RECORD_BYTES)?;
        let page_size = u32_at(free_list, 0)?;
        if !page_size.is_power_of_two() || !(PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&page_size) {
            return Some(Err(format!("says that a page has {page_size} bytes")));
        }
        let meta = Meta {
            page_size,
            map_size: u64_at(body, 16)?,
            free: Record::parse(free_list)?,
            main: Record::parse(body.get(72..72 + RECORD_BYTES)?)?,
            last_page: u64_at(body, 120)?,
            transaction: u64_at(body, 128)?,
        };
        // Transaction n writes page n mod 2, and both pages begin at 0.
        if meta.transaction != 0 && meta.transaction % 2 != number {
            return Some(Err(format!(
                "says that it was written by transaction {}",
                meta.transaction
            )));
        }
        Some(Ok(meta))
    }

    /// What must hold of the snapshot that is used, before its trees are looked at.
    pub fn verify(&self) -> Result<(), String> {
        if self.last_page == 0 || self.last_page >= self.map_size / u64::from(self.page_size) {
            return Err(format!(
                "says that the last page is {} in a map of {} bytes",
                self.last_page, self.map_size
            ));
        }
        if self.free.flags & !ENVIRONMENT_NO_SUB_DIR != TABLE_INTEGER_KEY {
            return Err(format!("gives the free list the flags {:#x}", self.free.flags));
        }
        Ok(())
    }
}

impl Record {
    pub fn parse(bytes: &[u8]) -> Option<Record> {
        let root = u64_at(bytes, 40)?;
        Some(Record {
            flags: u16_at(bytes, 4)?,
            depth: u16_at(bytes, 6)?,
            branch_pages: u64_at(bytes, 8)?,
            leaf_pages: u64_at(bytes, 16)?,
            overflow_pages: u64_at(bytes, 24)?,
            entries: u64_at(bytes, 32)?,
            root: (root != NO_ROOT).then_some(root),
        })
    }

    /// What must hold of the numbers among themselves.
    pub fn verify(&self) -> Result<(), String> {
        let is_empty = self.depth == 0
            && self.branch_pages == 0
            && self.leaf_pages == 0
            && self.overflow_pages == 0
            && self.entries == 0;
        match self.root {
            None if !is_empty => Err("has no root, and is not empty".into()),
            Some(_) if self.depth == 0 || self.depth > DEPTH_MAX => {
                Err(format!("is {} pages deep by its record", self.depth))
            }
            _ => Ok(()),
        }
    }

    pub fn pages(&self) -> u64 {
        self.branch_pages
            .saturating_add(self.leaf_pages)
            .saturating_add(self.overflow_pages)
    }
}

/// The nodes of a branch or leaf page. The page's header has been checked, every node is within the page, and together
/// they fill its end with no gap and no overlap: LMDB leaves none.
///
/// `sizes` is scratch: one zero for each two bytes of the page, and again so after a success.
pub fn nodes<'a>(page: &'a [u8], number: u64, kind: Kind, sizes: &mut [u16]) -> Result<Vec<Node<'a>>, String> {
    let flags = match kind {
        Kind::Branch => PAGE_BRANCH,
        Kind::Leaf => PAGE_LEAF,
    };
    verify_header(page, number, flags)?;
    let bounds = (u16_at(page, 12), u16_at(page, 14));
    let (Some(lower), Some(upper)) = (bounds.0.map(usize::from), bounds.1.map(usize::from)) else {
        return Err("is cut short".into());
    };
    if lower < PAGE_HEADER_BYTES
        || !lower.is_multiple_of(2)
        || lower > upper
        || upper > page.len()
        || !upper.is_multiple_of(2)
    {
        return Err(format!("says that its free space is from {lower} to {upper}"));
    }
    let count = (lower - PAGE_HEADER_BYTES) / 2;
    let mut nodes = Vec::with_capacity(count);
    for index in 0..count {
        let start = u16_at(page, PAGE_HEADER_BYTES + 2 * index).map_or(0, usize::from);
        let node = (start >= upper && start.is_multiple_of(2))
            .then(|| node(page, start, kind))
            .flatten()
            .ok_or_else(|| format!("has its node {index} outside of the page"))?;
        let size = NODE_HEADER_BYTES + node.key.len() + node.value.len();
        match sizes.get_mut(start / 2) {
            Some(place) if *place == 0 => *place = size.next_multiple_of(2) as u16,
            _ => return Err(format!("has its node {index} where another is")),
        }
        let is_leftmost = kind == Kind::Branch && index == 0;
        if node.key.len() > KEY_BYTES_MAX || (node.key.is_empty() && !is_leftmost) {
            return Err(format!("has a key of {} bytes in its node {index}", node.key.len()));
        }
        nodes.push(node);
    }

    let (mut place, mut seen) = (upper, 0);
    while let Some(size) = sizes.get_mut(place / 2).filter(|size| **size > 0) {
        place += usize::from(*size);
        *size = 0;
        seen += 1;
    }
    if place != page.len() || seen != count {
        return Err("has nodes that overlap, or gaps between them".into());
    }
    Ok(nodes)
}

fn node(page: &[u8], start: usize, kind: Kind) -> Option<Node<'_>> {
    let low = u32_at(page, start)?;
    let flags = u16_at(page, start + 4)?;
    let key_start = start + NODE_HEADER_BYTES;
    let key_end = key_start + usize::from(u16_at(page, start + 6)?);
    let here = match kind {
        Kind::Branch => 0,
        Kind::Leaf if flags & NODE_OVERFLOW != 0 => 8,
        Kind::Leaf => low as usize,
    };
    Some(Node {
        flags,
        value_bytes: low.into(),
        child: u64::from(low) | u64::from(flags) << 32,
        key: page.get(key_start..key_end)?,
        value: page.get(key_end..key_end.checked_add(here)?)?,
    })
}

/// How many pages a run has, from the header of its first one, and that they hold a value of this size. A run may be
/// longer than its value needs: LMDB keeps it when a value is overwritten by a shorter one.
pub fn overflow_pages(header: &[u8], number: u64, value_bytes: u64, page_size: u32) -> Result<u64, String> {
    verify_header(header, number, PAGE_OVERFLOW)?;
    let pages = u64::from(u32_at(header, 12).unwrap_or(0));
    if pages * u64::from(page_size) < PAGE_HEADER_BYTES as u64 + value_bytes {
        return Err(format!("is a run of {pages} pages for a value of {value_bytes} bytes"));
    }
    Ok(pages)
}

fn verify_header(page: &[u8], number: u64, flags: u16) -> Result<(), String> {
    let (Some(own_number), Some(own_flags)) = (u64_at(page, 0), u16_at(page, 10)) else {
        return Err("is cut short".into());
    };
    if own_number != number {
        return Err(format!("says that it is page {own_number}"));
    }
    if own_flags != flags {
        let kind = match flags {
            PAGE_BRANCH => "a branch",
            PAGE_LEAF => "a leaf",
            _ => "an overflow page",
        };
        return Err(format!("is to be {kind} and has the flags {own_flags:#x}"));
    }
    Ok(())
}
