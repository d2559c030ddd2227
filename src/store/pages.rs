//! Checks the pages of an LMDB data file by reading them, before LMDB is let near it.
//!
//! LMDB has no checksums and trusts its pages: a wrong page number or size makes it read outside of its map, and the
//! process ends by a signal. What passes here, LMDB can read from end to end.
//!
//! Called  by whoever is about to open the file, and by `skein inspect`.
//! Finds   a file that is cut short, of another format, or empty; in the snapshot that LMDB would pick: a page that is not
//!         what or where its parent says, nodes outside of their page or over each other, keys out of order, counts that
//!         differ from the table's record, a page used twice, or used and free.
//! Blind   to the bytes of values and, where the order still holds, of keys; to the length of a value as long as its overflow
//!         pages hold it, elsewhere by the one byte to an even number; to what lies in free pages and in the snapshot before
//!         the last; to the leaves and values of a table that it is told not to read; and to damage that makes the newer meta
//!         page say it is older than the other, which is how a file without the last commit looks.
//! Holds   - nothing is written, nothing is mapped, and no byte of the file can make it panic or loop;
//!         - memory is two bits a page, and one page a level of a tree.
//!
//! **Which snapshot.** As `mdb_env_read_header` and `mdb_env_pick_meta` do it: both meta pages must have their flag, magic
//! and version, or LMDB refuses the file, so a zeroed meta page is damage and no reason to take the other. Of the two the
//! greater transaction counts, at a tie page 0. A commit rewrites 120 bytes of the older one, within one sector: cut
//! short, that is the old page or the new.
//!
//! **While a broker writes.** A commit overwrites only pages that neither of the last two snapshots has. The check of a
//! snapshot is therefore sound until the second commit after it; when one fails and the meta pages have changed meanwhile,
//! it begins anew, a few times. Whoever holds a read transaction *before* calling here keeps LMDB from using again
//! any page of that snapshot or of later ones: the first attempt is sound then, however busy the broker.

mod layout;

use std::cmp::Ordering;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};

use layout::{
    Kind, META_BYTES, Meta, NODE_OVERFLOW, NODE_TABLE, PAGE_HEADER_BYTES, RECORD_BYTES, Record, nodes, overflow_pages,
    u64_at,
};

/// A file that is being written is looked at so often before the check gives up.
const ATTEMPTS_MAX: u32 = 8;
/// Up to here a file that is read whole is asked for in one piece: in the order of the trees it would be read at random.
const READ_AHEAD_BYTES_MAX: u64 = 1 << 30;
const META_PAGES: u64 = 2;
/// Of a value in overflow pages that must be read: the free list's.
const CHUNK_BYTES: usize = 64 << 10;

/// How much of the file to read.
#[derive(Clone, Copy, Debug)]
pub enum Depth<'a> {
    /// Meta pages, free list, branch pages, and the leaves of all tables but these. Of these, a root is read
    /// though it is a leaf.
    Structure { unread: &'a [&'a str] },
    /// Every page that has a structure; of a value in overflow pages, the first page's header.
    Everything,
}

/// What the file holds, by its last snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub page_size: u32,
    pub last_transaction: u64,
    /// That of the other meta page: one less, where every commit was synced. If it is another, the newest commits may be lost:
    /// by a power cut where they were not synced, by damage to a meta page where they were. Both are 0 in a new file.
    pub other_transaction: u64,
    pub last_page: u64,
    /// In use, the meta pages and those of the free list included.
    pub used_pages: u64,
    pub free_pages: u64,
    /// Neither in use nor free. Harmless, and not seen from LMDB so far.
    pub lost_pages: u64,
    /// In the order of their names.
    pub tables: Vec<Table>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub name: String,
    pub depth: u16,
    pub entries: u64,
    pub branch_pages: u64,
    pub leaf_pages: u64,
    pub overflow_pages: u64,
    /// Otherwise `entries` and `overflow_pages` are what the table's record says.
    pub is_counted: bool,
}

/// Why the file must not be opened: one sentence, which names it.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// LMDB would make a new database of it without a word.
    #[error("{} is empty: it has lost what it held, or its making was cut short", path.display())]
    Empty { path: PathBuf },
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        path: PathBuf,
        /// Where it was seen; the cause may be the page that led there.
        page: Option<u64>,
        what: String,
    },
    #[error("{} cannot be read: {error}", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{} cannot be checked: it was written to faster than it could be read, {ATTEMPTS_MAX} times", path.display())]
    Busy { path: PathBuf },
}

/// Checks the file at `path`, which another process may be writing.
pub fn check(path: &Path, depth: Depth<'_>) -> Result<Summary, Damage> {
    let unreadable = |error| Damage::Unreadable {
        path: path.to_owned(),
        error,
    };
    let file = File::open(path).map_err(unreadable)?;
    if let Depth::Everything = depth
        && file.metadata().map_err(unreadable)?.len() <= READ_AHEAD_BYTES_MAX
    {
        // Advice: where it is not heard, the check takes longer.
        let _ = fadvise(&file, 0, None, Advice::WillNeed);
    }
    for _ in 0..ATTEMPTS_MAX {
        let before = metas(&file);
        let stop = match before.as_ref().map(|metas| walk(&file, metas, depth)) {
            Ok(Ok(summary)) => return Ok(summary),
            Ok(Err(stop)) => stop,
            Err(stop) => stop.clone(),
        };
        if before.ok() == metas(&file).ok() {
            return Err(stop.at(path));
        }
    }
    Err(Damage::Busy { path: path.to_owned() })
}

/// The same for the bytes of a file, which nobody else is changing.
pub fn check_image(bytes: &[u8], depth: Depth<'_>) -> Result<Summary, String> {
    let summary = metas(bytes).and_then(|metas| walk(bytes, &metas, depth));
    summary.map_err(|stop| stop.at(Path::new("the image")).to_string())
}

/// For fuzzing: any bytes give an answer, and of those that are whole the same, however much is read.
pub fn fuzz_pages(bytes: &[u8]) {
    let structure = check_image(bytes, Depth::Structure { unread: &["queues"] });
    let Ok(summary) = check_image(bytes, Depth::Everything) else {
        return;
    };
    let pages = summary.used_pages + summary.free_pages + summary.lost_pages;
    assert_eq!(pages, summary.last_page + 1);
    let mut structure = structure.expect("all of it is whole");
    for table in &mut structure.tables {
        assert_eq!(table.is_counted, table.name != "queues");
        table.is_counted = true;
    }
    assert_eq!(structure, summary);
}

/// Where pages are read from.
trait Source {
    fn length(&self) -> io::Result<u64>;
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<()>;
}

impl Source for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(into, at)
    }
}

impl Source for [u8] {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        let from = usize::try_from(at)
            .ok()
            .and_then(|at| self.get(at..at.checked_add(into.len())?));
        into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Why a walk ended early.
#[derive(Clone, Debug)]
enum Stop {
    Empty,
    Wrong { page: Option<u64>, what: String },
    Unreadable(io::ErrorKind, String),
}

impl Stop {
    fn at(self, path: &Path) -> Damage {
        let path = path.to_owned();
        match self {
            Stop::Empty => Damage::Empty { path },
            Stop::Wrong { page, what } => Damage::Damaged { path, page, what },
            Stop::Unreadable(kind, text) => Damage::Unreadable {
                path,
                error: io::Error::new(kind, text),
            },
        }
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop::Unreadable(error.kind(), error.to_string())
    }
}

/// `what` goes on from "page 7 ".
fn wrong(page: u64, what: impl Into<String>) -> Stop {
    Stop::Wrong {
        page: Some(page),
        what: format!("page {page} {}", what.into()),
    }
}

/// `what` is a sentence of its own.
fn wrong_as_a_whole(what: String) -> Stop {
    Stop::Wrong { page: None, what }
}

fn metas<S: Source + ?Sized>(source: &S) -> Result<[Meta; 2], Stop> {
    let length = source.length()?;
    if length == 0 {
        return Err(Stop::Empty);
    }
    let meta = |number, at: u64| {
        if length < at + META_BYTES as u64 {
            return Err(wrong_as_a_whole(format!(
                "it ends after {length} bytes, within meta page {number}"
            )));
        }
        let mut bytes = [0; META_BYTES];
        source.read_at(&mut bytes, at)?;
        Meta::parse(&bytes, number).map_err(|what| wrong(number, what))
    };
    let first = meta(0, 0)?;
    let second = meta(1, first.page_size.into())?;
    if first.page_size != second.page_size {
        return Err(wrong(1, format!("says that a page has {} bytes", second.page_size)));
    }
    Ok([first, second])
}

fn walk<S: Source + ?Sized>(source: &S, metas: &[Meta; 2], depth: Depth<'_>) -> Result<Summary, Stop> {
    let [first, second] = metas;
    let (number, meta, other) = if first.transaction < second.transaction {
        (1, second, first)
    } else {
        (0, first, second)
    };
    meta.verify().map_err(|what| wrong(number, what))?;

    // After the meta pages were read: what they lead to was written before them, and a file never gets shorter.
    let file_pages = source.length()? / u64::from(meta.page_size);
    let mut walk = Walk {
        source,
        page_size: meta.page_size,
        last_transaction: meta.transaction,
        last_page: meta.last_page,
        file_pages,
        in_use: PageSet::new(file_pages.min(meta.last_page + 1)),
        free: PageSet::new(file_pages.min(meta.last_page + 1)),
        free_past_end: Vec::new(),
        free_count: 0,
        buffers: Vec::new(),
        sizes: vec![0; meta.page_size as usize / 2],
    };

    walk.tree(&mut Tree::new(Role::FreeList, &meta.free, true), number)?;
    walk.verify_tail()?;

    let mut main = Tree::new(Role::Tables, &meta.main, true);
    walk.tree(&mut main, number)?;
    let mut used_pages = META_PAGES
        .saturating_add(meta.free.pages())
        .saturating_add(meta.main.pages());
    let mut tables = Vec::with_capacity(main.tables.len());
    for (page, name, record) in main.tables {
        let is_counted = match depth {
            Depth::Everything => true,
            Depth::Structure { unread } => !unread.contains(&name.as_str()),
        };
        walk.tree(&mut Tree::new(Role::Table(&name), &record, is_counted), page)?;
        used_pages = used_pages.saturating_add(record.pages());
        tables.push(Table {
            name,
            depth: record.depth,
            entries: record.entries,
            branch_pages: record.branch_pages,
            leaf_pages: record.leaf_pages,
            overflow_pages: record.overflow_pages,
            is_counted,
        });
    }

    let accounted_pages = used_pages.saturating_add(walk.free_count);
    let Some(lost_pages) = (meta.last_page + 1).checked_sub(accounted_pages) else {
        return Err(wrong_as_a_whole(format!(
            "the tables have {used_pages} pages and {} are free, of {} in all",
            walk.free_count,
            meta.last_page + 1
        )));
    };
    Ok(Summary {
        page_size: meta.page_size,
        last_transaction: meta.transaction,
        other_transaction: other.transaction,
        last_page: meta.last_page,
        used_pages,
        free_pages: walk.free_count,
        lost_pages,
        tables,
    })
}

/// What one check has seen of a snapshot.
struct Walk<'s, S: ?Sized> {
    source: &'s S,
    page_size: u32,
    last_transaction: u64,
    last_page: u64,
    file_pages: u64,
    /// These two know the pages that are in the file; a free page may be past its end, where none was written yet.
    in_use: PageSet,
    free: PageSet,
    free_past_end: Vec<u64>,
    free_count: u64,
    buffers: Vec<Vec<u8>>,
    sizes: Vec<u16>,
}

/// One tree on the way, and what was counted in it.
struct Tree<'t> {
    role: Role<'t>,
    record: &'t Record,
    reads_leaves: bool,
    branch_pages: u64,
    leaf_pages: u64,
    overflow_pages: u64,
    entries: u64,
    /// Of the tree of tables: where the record is, the name, the record.
    tables: Vec<(u64, String, Record)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role<'t> {
    /// Transaction → the pages it freed.
    FreeList,
    /// Name → record of the table.
    Tables,
    Table(&'t str),
}

/// What the parent's separators allow: from the one, up to but without the other.
#[derive(Clone, Copy)]
struct Range<'k> {
    from: Option<&'k [u8]>,
    to: Option<&'k [u8]>,
}

impl<'t> Tree<'t> {
    fn new(role: Role<'t>, record: &'t Record, reads_leaves: bool) -> Tree<'t> {
        Tree {
            role,
            record,
            reads_leaves,
            branch_pages: 0,
            leaf_pages: 0,
            overflow_pages: 0,
            entries: 0,
            tables: Vec::new(),
        }
    }

    fn name(&self) -> String {
        match self.role {
            Role::FreeList => "the free list".into(),
            Role::Tables => "the list of tables".into(),
            Role::Table(name) => format!("table `{name}`"),
        }
    }

    /// LMDB's own order: that of bytes, but of numbers in the free list.
    fn order(&self, a: &[u8], b: &[u8]) -> Ordering {
        match self.role {
            Role::FreeList => u64_at(a, 0).cmp(&u64_at(b, 0)),
            _ => a.cmp(b),
        }
    }

    /// The counts, which are known when the walk is over.
    fn verify_counts(&self) -> Result<(), String> {
        let record = self.record;
        let mut counts = vec![
            ("branch pages", self.branch_pages, record.branch_pages),
            ("leaf pages", self.leaf_pages, record.leaf_pages),
        ];
        if self.reads_leaves {
            counts.push(("overflow pages", self.overflow_pages, record.overflow_pages));
            counts.push(("entries", self.entries, record.entries));
        }
        match counts.iter().find(|(_, counted, recorded)| counted != recorded) {
            None => Ok(()),
            Some((what, counted, recorded)) => Err(format!(
                "{} has {counted} {what} and {recorded} by its record",
                self.name()
            )),
        }
    }
}

impl<S: Source + ?Sized> Walk<'_, S> {
    /// `page` has the record.
    fn tree(&mut self, tree: &mut Tree<'_>, page: u64) -> Result<(), Stop> {
        let name = tree.name();
        tree.record
            .verify()
            .map_err(|what| wrong_as_a_whole(format!("{name} {what}")))?;
        if tree.role != Role::FreeList && tree.record.flags != 0 {
            return Err(wrong_as_a_whole(format!(
                "{name} has the flags {:#x}, which this program never sets",
                tree.record.flags
            )));
        }
        if let Some(root) = tree.record.root {
            let all = Range { from: None, to: None };
            self.page(tree, page, root, 1, all)?;
        }
        tree.verify_counts().map_err(wrong_as_a_whole)
    }

    /// Page `number`, which `parent` points to, and all below it.
    fn page(
        &mut self,
        tree: &mut Tree<'_>,
        parent: u64,
        number: u64,
        level: u16,
        range: Range<'_>,
    ) -> Result<(), Stop> {
        self.claim(tree, parent, number, 1)?;
        let kind = if level == tree.record.depth {
            Kind::Leaf
        } else {
            Kind::Branch
        };
        match kind {
            Kind::Branch => tree.branch_pages += 1,
            Kind::Leaf => tree.leaf_pages += 1,
        }
        if kind == Kind::Leaf && level > 1 && !tree.reads_leaves {
            return Ok(());
        }

        let mut buffer = self.buffers.pop().unwrap_or_else(|| vec![0; self.page_size as usize]);
        self.source.read_at(&mut buffer, self.offset(number))?;
        let of_tree = |what: String| wrong(number, format!("of {} {what}", tree.name()));
        let nodes = nodes(&buffer, number, kind, &mut self.sizes).map_err(of_tree)?;
        let count_min = if kind == Kind::Branch && tree.role != Role::FreeList {
            2
        } else {
            1
        };
        if nodes.len() < count_min {
            return Err(of_tree(format!("has {} nodes", nodes.len())));
        }
        // The key of a branch's first node stands for all that is less than the second; LMDB never looks at it.
        let keyed = &nodes[usize::from(kind == Kind::Branch)..];
        if tree.role == Role::FreeList && keyed.iter().any(|node| node.key.len() != 8) {
            return Err(of_tree("has a key that is no transaction".into()));
        }
        let is_descending = |pair: &[layout::Node]| tree.order(pair[0].key, pair[1].key) != Ordering::Less;
        if let Some(index) = keyed.windows(2).position(is_descending) {
            return Err(of_tree(format!("has a key out of order, its {}", index + 1)));
        }
        if let (Some(first), Some(last)) = (keyed.first(), keyed.last())
            && (range.from.is_some_and(|from| tree.order(first.key, from).is_lt())
                || range.to.is_some_and(|to| tree.order(last.key, to).is_ge()))
        {
            return Err(of_tree(format!("has keys that belong elsewhere, by page {parent}")));
        }

        match kind {
            Kind::Branch => {
                for (index, node) in nodes.iter().enumerate() {
                    let range = Range {
                        from: if index == 0 { range.from } else { Some(node.key) },
                        to: nodes.get(index + 1).map(|next| next.key).or(range.to),
                    };
                    self.page(tree, number, node.child, level + 1, range)?;
                }
            }
            Kind::Leaf => {
                // A root is read even where leaves are not, but not what it leads to.
                tree.entries += nodes.len() as u64;
                if tree.reads_leaves {
                    for node in &nodes {
                        self.entry(tree, number, node)?;
                    }
                }
            }
        }
        drop(nodes);
        self.buffers.push(buffer);
        Ok(())
    }

    /// An entry of a leaf, and the value it leads to.
    fn entry(&mut self, tree: &mut Tree<'_>, number: u64, node: &layout::Node<'_>) -> Result<(), Stop> {
        let flags = if tree.role == Role::Tables {
            NODE_TABLE
        } else {
            node.flags & NODE_OVERFLOW
        };
        if node.flags != flags {
            return Err(wrong(
                number,
                format!("of {} has an entry with the flags {:#x}", tree.name(), node.flags),
            ));
        }
        let run = match flags {
            NODE_OVERFLOW => Some(self.overflow(tree, number, node)?),
            _ => None,
        };
        match tree.role {
            Role::Table(_) => Ok(()),
            Role::Tables => {
                let record = Some(node.value).filter(|value| value.len() == RECORD_BYTES);
                let Some(record) = record.and_then(Record::parse) else {
                    return Err(wrong(number, "of the list of tables has no record where one is due"));
                };
                let name = String::from_utf8_lossy(node.key).into_owned();
                tree.tables.push((number, name, record));
                Ok(())
            }
            Role::FreeList if u64_at(node.key, 0) > Some(self.last_transaction) => {
                Err(wrong(number, "of the free list has a transaction that is yet to come"))
            }
            Role::FreeList => match run {
                None => self.free_pages(number, &mut FreeRecord::new(node.value_bytes), node.value),
                Some(run) => self.free_run(run, node.value_bytes),
            },
        }
    }

    /// A run of overflow pages: its first page.
    fn overflow(&mut self, tree: &mut Tree<'_>, number: u64, node: &layout::Node<'_>) -> Result<u64, Stop> {
        let run = u64_at(node.value, 0).unwrap_or(0);
        self.verify_place(tree, number, run, 1)?;
        let mut header = [0; PAGE_HEADER_BYTES];
        self.source.read_at(&mut header, self.offset(run))?;
        let pages = overflow_pages(&header, run, node.value_bytes, self.page_size)
            .map_err(|what| wrong(run, format!("of {} {what}", tree.name())))?;
        self.claim(tree, number, run, pages)?;
        tree.overflow_pages += pages;
        Ok(run)
    }

    /// The free pages that one transaction left, from overflow pages.
    fn free_run(&mut self, run: u64, value_bytes: u64) -> Result<(), Stop> {
        let mut record = FreeRecord::new(value_bytes);
        let mut chunk = vec![0; CHUNK_BYTES];
        let (mut at, mut left) = (self.offset(run) + PAGE_HEADER_BYTES as u64, value_bytes);
        while left > 0 {
            let part = &mut chunk[..left.min(CHUNK_BYTES as u64) as usize];
            self.source.read_at(part, at)?;
            self.free_pages(run, &mut record, part)?;
            at += part.len() as u64;
            left -= part.len() as u64;
        }
        Ok(())
    }

    /// The next bytes of a record of free pages: how many they are, then their numbers from the greatest down. Room
    /// behind them is room to spare.
    fn free_pages(&mut self, number: u64, record: &mut FreeRecord, bytes: &[u8]) -> Result<(), Stop> {
        let mut words = bytes.chunks(8);
        if record.left.is_none() {
            let count = words.next().and_then(|word| u64_at(word, 0)).unwrap_or(u64::MAX);
            if !record.value_bytes.is_multiple_of(8) || count >= record.value_bytes / 8 {
                return Err(wrong(number, "of the free list has fewer pages than it says"));
            }
            record.left = Some(count);
        }
        for word in words {
            let (Some(left @ 1..), Some(page)) = (record.left, u64_at(word, 0)) else {
                break;
            };
            if page < META_PAGES || page > self.last_page || record.before.is_some_and(|before| page >= before) {
                return Err(wrong(
                    number,
                    format!("of the free list has page {page} where it cannot be"),
                ));
            }
            if page >= self.file_pages {
                self.free_past_end.push(page);
            } else if self.in_use.contains(page) {
                return Err(wrong(
                    number,
                    format!("of the free list has page {page}, which is in use"),
                ));
            } else if !self.free.insert(page) {
                return Err(wrong(number, format!("of the free list has page {page} a second time")));
            }
            self.free_count += 1;
            record.left = Some(left - 1);
            record.before = Some(page);
        }
        Ok(())
    }

    /// Pages past the end of the file: LMDB writes a page when it is first used, so they must all be free.
    fn verify_tail(&mut self) -> Result<(), Stop> {
        let free = &mut self.free_past_end;
        free.sort_unstable();
        if let Some(pair) = free.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(wrong_as_a_whole(format!("the free list has page {} twice", pair[0])));
        }
        let due = (self.last_page + 1).saturating_sub(self.file_pages);
        if (free.len() as u64) < due {
            let unfree = (self.file_pages..).zip(free.iter()).find(|(due, free)| due != *free);
            let page = unfree.map_or(self.file_pages + free.len() as u64, |(page, _)| page);
            return Err(Stop::Wrong {
                page: Some(page),
                what: format!("it ends after {} pages, and page {page} is in use", self.file_pages),
            });
        }
        Ok(())
    }

    /// Takes `count` pages into use.
    fn claim(&mut self, tree: &Tree<'_>, parent: u64, number: u64, count: u64) -> Result<(), Stop> {
        self.verify_place(tree, parent, number, count)?;
        for page in number..number + count {
            let what = if self.free.contains(page) {
                "which is on the free list"
            } else if !self.in_use.insert(page) {
                "which is in use already"
            } else {
                continue;
            };
            return Err(wrong(
                parent,
                format!("of {} leads to page {page}, {what}", tree.name()),
            ));
        }
        Ok(())
    }

    fn verify_place(&self, tree: &Tree<'_>, parent: u64, number: u64, count: u64) -> Result<(), Stop> {
        let end = number.checked_add(count);
        let what = match end {
            _ if number < META_PAGES => "which is a meta page".into(),
            Some(end) if end <= self.file_pages.min(self.last_page + 1) => return Ok(()),
            Some(end) if end <= self.last_page + 1 => format!("and the file ends after {} pages", self.file_pages),
            _ => format!("and the last is page {}", self.last_page),
        };
        let to = match count {
            1 => format!("page {number}"),
            _ => format!("the {count} pages from {number}"),
        };
        Err(wrong(parent, format!("of {} leads to {to}, {what}", tree.name())))
    }

    fn offset(&self, page: u64) -> u64 {
        page * u64::from(self.page_size)
    }
}

/// What one transaction freed, on the way through it.
struct FreeRecord {
    value_bytes: u64,
    /// How many are to come; unknown before the first word.
    left: Option<u64>,
    before: Option<u64>,
}

impl FreeRecord {
    fn new(value_bytes: u64) -> FreeRecord {
        FreeRecord {
            value_bytes,
            left: None,
            before: None,
        }
    }
}

/// A bit for each page of the file.
struct PageSet {
    words: Vec<u64>,
}

impl PageSet {
    fn new(pages: u64) -> PageSet {
        PageSet {
            words: vec![0; pages.div_ceil(64) as usize],
        }
    }

    /// Whether it was not there before. The caller has made sure that the page is in the file.
    fn insert(&mut self, page: u64) -> bool {
        let word = &mut self.words[(page / 64) as usize];
        let bit = 1 << (page % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    fn contains(&self, page: u64) -> bool {
        self.words[(page / 64) as usize] & (1 << (page % 64)) != 0
    }
}
