//! JSON text, read without building anything of it.
//!
//! Owns    [`settle`], which a text must pass before it is stored, and [`Reader`], which walks one that has.
//! Called  by `payload` and `decode` (settle), by `trigger`, `aggregate` and `decode` (reader).
//! Holds   - what is settled is kept to the letter: numbers of any length, white space, the order of names. Only of members
//!           with one name all but the last are cut out;
//!         - a settled text is JSON (RFC 8259) whose numbers are finite and whose strings are Unicode, no object in it has a
//!           name twice, and it is at most `VALUE_DEPTH_MAX` deep;
//!         - the time is linear in the text, whatever is in it, but for sorting the names of one object;
//!         - nothing is allocated but for an object of more than [`FEW`] members, a name with an escape, or a name that is
//!           there twice.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};

use crate::limits::VALUE_DEPTH_MAX;

/// Names of one object that are compared with each other as they come; more are sorted.
const FEW: usize = 16;

/// The text is not JSON that could be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadJson;

/// White space as JSON knows it, taken off both ends.
pub fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t', '\n', '\r'])
}

/// Whether a text is a number in JSON's grammar, and finite as a 64-bit float.
pub fn is_number(text: &str) -> bool {
    text.starts_with(|first: char| first == '-' || first.is_ascii_digit())
        && text.ends_with(|last: char| last.is_ascii_digit())
        && serde_json::from_str::<f64>(text).is_ok_and(f64::is_finite)
}

/// What is to be stored of a text that may be at most `depth_max` deep: the text itself, or, where an object has a name twice
/// or the outermost one the name `without`, the text without those members.
pub fn settle<'t>(text: &'t str, depth_max: usize, without: Option<&str>) -> Result<Cow<'t, str>, BadJson> {
    debug_assert!(depth_max <= VALUE_DEPTH_MAX);
    let mut is_doubtful = false;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let check = Check {
        depth_left: depth_max,
        without,
        is_doubtful: &mut is_doubtful,
    };
    check.deserialize(&mut deserializer).map_err(|_| BadJson)?;
    deserializer.end().map_err(|_| BadJson)?;
    Ok(if is_doubtful {
        let mut cuts = Vec::new();
        find_cuts(&mut Reader::new(text), without, &mut cuts);
        without_cuts(text, cuts)
    } else {
        Cow::Borrowed(text)
    })
}

/// Walks a whole text, which its deserializer checks by that. (Values that are ignored are not checked as thoroughly.)
struct Check<'c> {
    depth_left: usize,
    /// A name that the outermost object must not have.
    without: Option<&'c str>,
    /// Set where an object may have a name that it must not have: [`find_cuts`] will know.
    is_doubtful: &'c mut bool,
}

impl Check<'_> {
    /// For what lies within.
    fn inner<E: Error>(&mut self) -> Result<Check<'_>, E> {
        let depth_left = self.depth_left.checked_sub(1);
        Ok(Check {
            depth_left: depth_left.ok_or_else(|| E::custom("too deep"))?,
            without: None,
            is_doubtful: self.is_doubtful,
        })
    }
}

impl<'de> DeserializeSeed<'de> for Check<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Check<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<(), E> {
        number.is_finite().then_some(()).ok_or_else(|| E::custom("no number"))
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<(), A::Error> {
        let mut inner = self.inner()?;
        while elements.next_element_seed(inner.again())?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
        let without = self.without;
        let mut inner = self.inner()?;
        let mut names = Names::default();
        while let Some(name) = members.next_key_seed(Name)? {
            // Compared as it is written: that is enough for a doubt, and a name with an escape is always one.
            *inner.is_doubtful |= name.is_none_or(|name| Some(name) == without || names.meets(name));
            members.next_value_seed(inner.again())?;
        }
        *inner.is_doubtful |= names.meet();
        Ok(())
    }
}

impl Check<'_> {
    fn again(&mut self) -> Check<'_> {
        Check {
            depth_left: self.depth_left,
            without: self.without,
            is_doubtful: self.is_doubtful,
        }
    }
}

/// A member's name; `None` where it has an escape and so lies nowhere as it is meant.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Option<&'de str>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Option<&'de str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(Some(name))
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// The names of one object so far.
#[derive(Default)]
struct Names<'de> {
    few: [&'de str; FEW],
    count: usize,
    /// All of them, once they are more than a few.
    many: Vec<&'de str>,
}

impl<'de> Names<'de> {
    /// Whether the name is among the few that came before.
    fn meets(&mut self, name: &'de str) -> bool {
        if let Some(place) = self.few.get_mut(self.count) {
            *place = name;
            self.count += 1;
            return self.few[..self.count - 1].contains(&name);
        }
        if self.many.is_empty() {
            self.many.extend(self.few);
        }
        self.many.push(name);
        false
    }

    /// Whether two among the many are the same.
    fn meet(&mut self) -> bool {
        self.many.sort_unstable();
        self.many.windows(2).any(|pair| pair[0] == pair[1])
    }
}

/// Where the next value must be cut: every member that a later one of its object makes void, and those named `without`.
fn find_cuts(reader: &mut Reader<'_>, without: Option<&str>, cuts: &mut Vec<Range<usize>>) {
    match reader.begin() {
        Some(Begun::Object) => {
            let mut members = Vec::new();
            let first = reader.at;
            while let Some(raw) = reader.next_name() {
                let start = reader.at_name;
                find_cuts(reader, None, cuts);
                members.push((unescaped(raw), start..reader.at));
            }
            cut_members(first, &members, without, cuts);
        }
        Some(Begun::Array) => {
            while reader.next_element() {
                find_cuts(reader, None, cuts);
            }
        }
        Some(Begun::Scalar(_)) | None => {}
    }
}

/// `first`: where the object's text begins behind its brace.
fn cut_members(
    first: usize,
    members: &[(Cow<'_, str>, Range<usize>)],
    without: Option<&str>,
    cuts: &mut Vec<Range<usize>>,
) {
    let mut by_name: Vec<usize> = (0..members.len()).collect();
    by_name.sort_by_key(|&member| &members[member].0);
    let mut is_kept = vec![true; members.len()];
    for pair in by_name.windows(2) {
        is_kept[pair[0]] = members[pair[0]].0 != members[pair[1]].0;
    }
    for (kept, (name, _)) in is_kept.iter_mut().zip(members) {
        *kept &= Some(&**name) != without;
    }
    // The comma behind a member goes with it. Behind the last there is none, so the one before the rest goes.
    let end_of_kept = is_kept.iter().rposition(|&kept| kept).map_or(0, |last| last + 1);
    for member in (0..end_of_kept).filter(|&member| !is_kept[member]) {
        cuts.push(members[member].1.start..members[member + 1].1.start);
    }
    if let (true, Some((_, last))) = (end_of_kept < members.len(), members.last()) {
        let start = end_of_kept.checked_sub(1).map_or(first, |member| members[member].1.end);
        cuts.push(start..last.end);
    }
}

fn without_cuts(text: &str, mut cuts: Vec<Range<usize>>) -> Cow<'_, str> {
    if cuts.is_empty() {
        return Cow::Borrowed(text);
    }
    // One may lie within another.
    cuts.sort_unstable_by_key(|cut| cut.start);
    let mut kept = String::with_capacity(text.len());
    let mut at = 0;
    for cut in cuts {
        if cut.start > at {
            kept.push_str(&text[at..cut.start]);
        }
        at = at.max(cut.end);
    }
    kept.push_str(&text[at..]);
    Cow::Owned(kept)
}

/// What a string means: `raw` is its text, quotation marks included.
pub fn unescaped(raw: &str) -> Cow<'_, str> {
    let inside = raw
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or(raw);
    if inside.contains('\\') {
        serde_json::from_str::<String>(raw).map_or(Cow::Borrowed(inside), Cow::Owned)
    } else {
        Cow::Borrowed(inside)
    }
}

/// Appends `text` as a string.
pub fn push_string(text: &str, out: &mut String) {
    out.push('"');
    let mut rest = text;
    while let Some(at) = rest.find(|c| matches!(c, '"' | '\\' | '\0'..='\u{1f}')) {
        let special = rest.as_bytes()[at];
        out.push_str(&rest[..at]);
        match special {
            b'"' | b'\\' => out.extend(['\\', char::from(special)]),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            _ => {
                out.push_str(if special < 0x10 { "\\u000" } else { "\\u001" });
                out.push(char::from(b"0123456789abcdef"[usize::from(special & 15)]));
            }
        }
        rest = &rest[at + 1..];
    }
    out.push_str(rest);
    out.push('"');
}

/// Walks a settled text from one value to the next. What is no such text ends the walk early, and nothing more.
pub struct Reader<'t> {
    text: &'t str,
    at: usize,
    /// Objects and arrays begun and not over.
    depth: usize,
    /// Where the name begins that was read last.
    at_name: usize,
}

/// The beginning of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun<'t> {
    /// [`Reader::next_name`] is next, and before each of the values.
    Object,
    /// [`Reader::next_element`] is next, and before each of the values.
    Array,
    /// A string with its quotation marks, a number, `true`, `false` or `null`; it is read whole.
    Scalar(&'t str),
}

impl<'t> Reader<'t> {
    pub fn new(text: &'t str) -> Self {
        Reader {
            text,
            at: 0,
            depth: 0,
            at_name: 0,
        }
    }

    pub fn begin(&mut self) -> Option<Begun<'t>> {
        let begun = match self.peek()? {
            b'"' => Begun::Scalar(self.string()),
            open @ (b'{' | b'[') if self.depth < VALUE_DEPTH_MAX => {
                self.at += 1;
                self.depth += 1;
                if open == b'{' { Begun::Object } else { Begun::Array }
            }
            _ => Begun::Scalar(self.word()),
        };
        if begun == Begun::Scalar("") {
            self.at = self.text.len();
            return None;
        }
        Some(begun)
    }

    /// The name of the object's next member, with its quotation marks; `None`: the object is over.
    pub fn next_name(&mut self) -> Option<&'t str> {
        if self.is_over(b'}') {
            return None;
        }
        self.peek().filter(|&byte| byte == b'"')?;
        self.at_name = self.at;
        let name = self.string();
        self.peek().filter(|&byte| byte == b':')?;
        self.at += 1;
        Some(name)
    }

    /// False: the array is over.
    pub fn next_element(&mut self) -> bool {
        !self.is_over(b']')
    }

    /// Passes over the next value, without recursion.
    pub fn skip(&mut self) {
        let mut depth = 0usize;
        while let Some(byte) = self.peek() {
            match byte {
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    depth = depth.saturating_sub(1);
                    self.at += 1;
                }
                b',' | b':' => self.at += 1,
                _ if self.begin().is_none() => return,
                _ => {}
            }
            if depth == 0 {
                return;
            }
        }
    }

    /// Whether the container is over; takes its end, or the comma before its next value.
    fn is_over(&mut self, end: u8) -> bool {
        match self.peek() {
            Some(byte) if byte == end => {
                self.at += 1;
                self.depth = self.depth.saturating_sub(1);
                true
            }
            Some(b',') => {
                self.at += 1;
                self.peek().is_none()
            }
            next => next.is_none(),
        }
    }

    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        let rest = self.text.as_bytes().get(self.at..)?;
        let blanks = rest.iter().position(|byte| !byte.is_ascii_whitespace())?;
        self.at += blanks;
        Some(rest[blanks])
    }

    /// A number or a name of a value; empty where none stands.
    fn word(&mut self) -> &'t str {
        let rest = &self.text[self.at..];
        let is_end = |c: char| matches!(c, ',' | ':' | '"' | '{' | '}' | '[' | ']') || c.is_ascii_whitespace();
        let word = &rest[..rest.find(is_end).unwrap_or(rest.len())];
        self.at += word.len();
        word
    }

    /// From one quotation mark to the next that has no backslash before it.
    fn string(&mut self) -> &'t str {
        let start = self.at;
        let mut bytes = self.text.as_bytes()[start..].iter().enumerate().skip(1);
        let mut end = self.text.len();
        while let Some((at, byte)) = bytes.next() {
            match byte {
                b'\\' => drop(bytes.next()),
                b'"' => {
                    end = start + at + 1;
                    break;
                }
                _ => {}
            }
        }
        self.at = end;
        &self.text[start..end]
    }
}
