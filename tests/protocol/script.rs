//! The language of the conversations: text in, `Conversation`s out.
//!
//! Owns    the grammar, which `README.md` beside this file describes for people.
//! Called  by `main.rs`, once per `*.txt` file.
//! Holds   - whatever is not understood is an error with file and line, never skipped;
//!         - `~` in a quoted string becomes a name that no other conversation has, so conversations can share a broker.

use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Conversation {
    /// File and line of its title.
    pub place: String,
    pub title: String,
    /// The lines of the checklist it stands for: `MQTT-3.1.0-2`, `X-2`, `V31-7`.
    pub ids: Vec<String>,
    /// Flags the broker is started with, beyond the usual ones.
    pub flags: Vec<String>,
    /// Needs a broker that nobody else talks to: it subscribes to `#`, or fills something.
    pub alone: bool,
    /// Why it only makes sense on a real socket; the heart in memory passes over it.
    pub tcp_only: Option<String>,
    /// How the broker that the conversations were tried against departs from the checklist here.
    pub mosquitto: Option<String>,
    pub steps: Vec<Step>,
}

#[derive(Debug, Clone)]
pub struct Step {
    pub line: usize,
    pub text: String,
    pub action: Action,
}

#[derive(Debug, Clone)]
pub enum Action {
    /// Bytes from the client; `chunk` bytes at a time.
    Send {
        connection: String,
        bytes: Vec<Atom>,
        chunk: Option<usize>,
    },
    /// Exactly these bytes come next.
    Expect {
        connection: String,
        bytes: Vec<Atom>,
    },
    /// Exactly these packets come next, in any order.
    ExpectAnyOrder {
        connection: String,
        packets: Vec<Vec<Atom>>,
    },
    /// Nothing more comes, and the connection ends.
    ExpectClose {
        connection: String,
        within: Option<Duration>,
    },
    /// Nothing comes, and the connection stays.
    ExpectNothing {
        connection: String,
        lasting: Option<Duration>,
    },
    Control {
        connection: String,
        control: Control,
    },
    Wait(Duration),
    MemoryBelow(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Connects and sends nothing.
    Open,
    /// Closes the socket: FIN.
    Drop,
    /// Closes the socket: RST.
    Reset,
    /// Ends the sending half only: FIN, and goes on reading.
    Shutdown,
    /// From here on every delivery is acknowledged as it is read.
    Acknowledge,
    /// From here on none is, as at the start.
    Withhold,
    /// What arrives and is not asked for is no mistake.
    Ignore,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Atom {
    Bytes(Vec<u8>),
    /// Two bytes: bound by the first `<` that meets it, the same ever after.
    Variable(String),
    /// Two bytes, any but zero.
    AnyId,
}

impl Atom {
    pub fn len(&self) -> usize {
        match self {
            Atom::Bytes(bytes) => bytes.len(),
            Atom::Variable(_) | Atom::AnyId => 2,
        }
    }
}

/// A conversation as written: what `@` stands for is not yet filled in.
struct Draft<'a> {
    line: usize,
    title: &'a str,
    options: Vec<(usize, &'a str)>,
    /// Each with the lines that go on with it.
    steps: Vec<(usize, String)>,
    cases: Vec<(usize, &'a str)>,
}

/// Parses one file. `file_number` makes the names that stand for `~` unique over all files.
pub fn parse(file: &str, file_number: usize, text: &str) -> Result<Vec<Conversation>, String> {
    let mut drafts: Vec<Draft> = Vec::new();
    let mut lines = text
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
        .peekable();
    while let Some((number, line)) = lines.next() {
        if line.trim().is_empty() || line.starts_with(';') {
            continue;
        }
        if let Some(title) = line.strip_prefix("# ") {
            let (options, steps, cases) = (Vec::new(), Vec::new(), Vec::new());
            drafts.push(Draft {
                line: number,
                title: title.trim(),
                options,
                steps,
                cases,
            });
            continue;
        }
        let Some(draft) = drafts.last_mut() else {
            return Err(format!("{file}:{number}: a step before any title"));
        };
        if let Some(option) = line.strip_prefix(": ") {
            draft.options.push((number, option.trim()));
        } else if let Some(case) = line.strip_prefix("| ") {
            draft.cases.push((number, case));
        } else {
            // A line that starts with a space goes on with the one before it.
            let mut whole = code_of(line).to_owned();
            while let Some((_, more)) = lines.next_if(|(_, next)| next.starts_with(' ') && !next.trim().is_empty()) {
                whole.push('\n');
                whole.push_str(code_of(more.trim_start()));
            }
            draft.steps.push((number, whole));
        }
    }
    let mut conversations = Vec::new();
    for draft in &drafts {
        let cases = if draft.cases.is_empty() {
            &[(draft.line, "")]
        } else {
            draft.cases.as_slice()
        };
        for (number, case) in cases {
            let name = format!("n{file_number}x{}", conversations.len());
            let conversation = conversation_of(draft, *number, case, &name)
                .map_err(|(line, reason)| format!("{file}:{line}: {reason}"))?;
            conversations.push(Conversation {
                place: format!("{file}:{number}"),
                ..conversation
            });
        }
    }
    Ok(conversations)
}

/// One conversation for one case; the error names its line.
fn conversation_of(draft: &Draft, line: usize, case: &str, name: &str) -> Result<Conversation, (usize, String)> {
    let code = code_of(case);
    let columns: Vec<&str> = code.split('|').map(str::trim).collect();
    let comment = case[code.len()..].trim();
    let mut conversation = Conversation {
        place: String::new(),
        title: if case.is_empty() {
            draft.title.to_owned()
        } else {
            format!("{}: {code}  {comment}", draft.title)
        },
        ids: ids_of(draft.title).map_err(|reason| (draft.line, reason))?,
        flags: Vec::new(),
        alone: false,
        tcp_only: None,
        mosquitto: None,
        steps: Vec::new(),
    };
    for (line, option) in &draft.options {
        let (key, value) = option.split_once(' ').unwrap_or((option, ""));
        match key {
            "with" => conversation.flags = value.split_whitespace().map(str::to_owned).collect(),
            "alone" => conversation.alone = true,
            "tcp" => conversation.tcp_only = Some(value.to_owned()),
            "mosquitto" => conversation.mosquitto = Some(value.to_owned()),
            _ => return Err((*line, format!("unknown option {key}"))),
        }
    }
    // A comment on a case that starts with "mosquitto" is that option for this case alone.
    if comment.starts_with("mosquitto") {
        conversation.mosquitto = Some(comment.to_owned());
    }
    let mut columns_used = 0;
    for (number, mut step) in unrolled(&draft.steps)? {
        if step.contains('@') {
            if case.is_empty() {
                return Err((number, "@ without cases".to_owned()));
            }
            for (index, column) in columns.iter().enumerate() {
                let mark = format!("@{}", index + 1);
                columns_used = columns_used.max(if step.contains(&mark) { index + 1 } else { 0 });
                step = step.replace(&mark, column);
            }
            if step.contains('@') {
                return Err((line, format!("no column for {step}")));
            }
        }
        let action = action_of(&step, name).map_err(|reason| (number, format!("{reason}\n    {step}")))?;
        conversation.steps.push(Step {
            line: number,
            text: step,
            action,
        });
    }
    if conversation.steps.is_empty() {
        return Err((draft.line, "a conversation without steps".to_owned()));
    }
    if !case.is_empty() && columns_used != columns.len() {
        return Err((line, format!("{} columns, {columns_used} of them used", columns.len())));
    }
    Ok(conversation)
}

/// Writes out what stands between `repeat N` and `end` N times, with variables of its own each time.
fn unrolled(steps: &[(usize, String)]) -> Result<Vec<(usize, String)>, (usize, String)> {
    let mut all = Vec::new();
    let mut rest = steps.iter();
    while let Some((number, step)) = rest.next() {
        let Some(count) = step.strip_prefix("repeat ") else {
            all.push((*number, step.clone()));
            continue;
        };
        let count: usize = count
            .parse()
            .map_err(|_| (*number, "repeat is followed by how often".to_owned()))?;
        let block: Vec<_> = rest.by_ref().take_while(|(_, step)| step != "end").collect();
        for round in 1..=count {
            for (number, step) in &block {
                let mut pieces = step.split('$');
                let mut text = pieces.next().unwrap_or_default().to_owned();
                for piece in pieces {
                    let end = piece.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(piece.len());
                    let own = if matches!(&piece[..end], "" | "i" | "d") {
                        String::new()
                    } else {
                        format!("_{round}")
                    };
                    text.push_str(&format!("${}{own}{}", &piece[..end], &piece[end..]));
                }
                all.push((*number, text));
            }
        }
    }
    Ok(all)
}

fn ids_of(title: &str) -> Result<Vec<String>, String> {
    let mut ids = Vec::new();
    let mut rest = title.trim();
    while let Some(tail) = rest.strip_prefix('[') {
        let (id, tail) = tail.split_once(']').ok_or("an id that is not closed")?;
        ids.push(id.to_owned());
        rest = tail.trim_start();
    }
    if ids.is_empty() {
        Err("a title starts with [the id it stands for]".to_owned())
    } else {
        Ok(ids)
    }
}

/// A line without its comment, which two spaces set off.
fn code_of(line: &str) -> &str {
    let mut quoted = false;
    let bytes = line.as_bytes();
    for index in 0..bytes.len() {
        match bytes[index] {
            b'"' => quoted = !quoted,
            b' ' if !quoted && bytes.get(index + 1) == Some(&b' ') => return &line[..index],
            _ => {}
        }
    }
    line.trim_end()
}

fn action_of(code: &str, name: &str) -> Result<Action, String> {
    if let Some(time) = code.strip_prefix("wait ") {
        return Ok(Action::Wait(duration_of(time)?));
    }
    if let Some(size) = code.strip_prefix("memory below ") {
        let mebibytes = size.trim().strip_suffix("MiB").ok_or("sizes are in MiB")?;
        return Ok(Action::MemoryBelow(
            mebibytes.trim().parse::<u64>().map_err(|error| error.to_string())? << 20,
        ));
    }
    let end = code.find(|c: char| !c.is_ascii_alphanumeric()).ok_or("not a step")?;
    let connection = code[..end].to_owned();
    let (sign, rest) = code[end..].split_at(1);
    match sign {
        ">" => {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let chunk = match &rest[..digits] {
                "" => None,
                number => Some(number.parse().map_err(|_| "a chunk is a number of bytes")?),
            };
            Ok(Action::Send {
                connection,
                bytes: atoms_of(&rest[digits..], name)?,
                chunk,
            })
        }
        "<" => expectation_of(connection, rest.trim(), name),
        "!" => {
            let control = match rest.trim() {
                "open" => Control::Open,
                "drop" => Control::Drop,
                "reset" => Control::Reset,
                "shutdown" => Control::Shutdown,
                "acknowledge" => Control::Acknowledge,
                "withhold" => Control::Withhold,
                "ignore" => Control::Ignore,
                other => return Err(format!("unknown control {other}")),
            };
            Ok(Action::Control { connection, control })
        }
        _ => Err("a step is `name> bytes`, `name< bytes`, `name! control`, `wait` or `memory below`".to_owned()),
    }
}

fn expectation_of(connection: String, rest: &str, name: &str) -> Result<Action, String> {
    if let Some(tail) = rest.strip_prefix("close") {
        let within = match tail.trim().strip_prefix("within ") {
            Some(time) => Some(duration_of(time)?),
            None if tail.trim().is_empty() => None,
            None => return Err("close, or close within a time".to_owned()),
        };
        return Ok(Action::ExpectClose { connection, within });
    }
    if let Some(tail) = rest.strip_prefix("nothing") {
        let lasting = match tail.trim().strip_prefix("for ") {
            Some(time) => Some(duration_of(time)?),
            None if tail.trim().is_empty() => None,
            None => return Err("nothing, or nothing for a time".to_owned()),
        };
        return Ok(Action::ExpectNothing { connection, lasting });
    }
    if let Some(tail) = rest.strip_prefix("any order") {
        let packets = packets_of(atoms_of(tail, name)?)?;
        if packets.len() < 2 {
            return Err("any order needs two packets or more".to_owned());
        }
        return Ok(Action::ExpectAnyOrder { connection, packets });
    }
    Ok(Action::Expect {
        connection,
        bytes: atoms_of(rest, name)?,
    })
}

/// Cuts a row of packets into packets. Their fixed headers are bytes, never variables.
fn packets_of(atoms: Vec<Atom>) -> Result<Vec<Vec<Atom>>, String> {
    let mut packets = Vec::new();
    // How much of the packet at the end is still to come.
    let mut missing = 0;
    for atom in atoms {
        let Atom::Bytes(mut bytes) = atom else {
            let packet: &mut Vec<Atom> = packets
                .last_mut()
                .filter(|_| missing >= 2)
                .ok_or("a variable in a header")?;
            packet.push(atom);
            missing -= 2;
            continue;
        };
        while !bytes.is_empty() {
            if missing == 0 {
                let header_bytes = bytes
                    .iter()
                    .skip(1)
                    .position(|byte| byte & 128 == 0)
                    .ok_or("half a header")?
                    + 2;
                let digits = bytes[1..header_bytes].iter().enumerate();
                let length: usize = digits
                    .map(|(place, digit)| usize::from(digit & 127) << (7 * place))
                    .sum();
                missing = header_bytes + length;
                packets.push(Vec::new());
            }
            let rest = bytes.split_off(missing.min(bytes.len()));
            missing -= bytes.len();
            packets
                .last_mut()
                .expect("just pushed, or begun before")
                .push(Atom::Bytes(bytes));
            bytes = rest;
        }
    }
    if missing == 0 {
        Ok(packets)
    } else {
        Err("half a packet".to_owned())
    }
}

fn duration_of(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1),
        None => (text.strip_suffix('s').ok_or("a time is in s or ms")?, 1000),
    };
    number
        .parse()
        .map(|count: u64| Duration::from_millis(count * unit))
        .map_err(|error| error.to_string())
}

fn atoms_of(code: &str, name: &str) -> Result<Vec<Atom>, String> {
    let mut parser = Parser {
        rest: code.trim_start(),
        name,
    };
    let items = parser.items(None)?;
    let mut atoms = Vec::new();
    flatten(&items, 0, &mut atoms)?;
    if atoms.is_empty() {
        Err("no bytes".to_owned())
    } else {
        Ok(atoms)
    }
}

#[derive(Debug)]
enum Item {
    Bytes(Vec<u8>),
    Variable(String),
    AnyId,
    /// `$i`: how often the enclosing group has been gone through, from 1.
    Index,
    /// `$d`: the same in five decimal digits, for topic names.
    Digits,
    /// `{ … }`: a Remaining Length, then what it counts.
    Remaining(Vec<Item>),
    /// `s{ … }`: a two-byte length, then what it counts.
    Prefixed(Vec<Item>),
    Repeated(Vec<Item>, usize),
}

struct Parser<'a> {
    rest: &'a str,
    name: &'a str,
}

impl Parser<'_> {
    fn items(&mut self, end: Option<char>) -> Result<Vec<Item>, String> {
        let mut items = Vec::new();
        loop {
            self.rest = self.rest.trim_start();
            let Some(first) = self.rest.chars().next() else {
                return if end.is_none() {
                    Ok(items)
                } else {
                    Err("a bracket that is not closed".to_owned())
                };
            };
            if Some(first) == end {
                self.rest = &self.rest[1..];
                return Ok(items);
            }
            let item = self.item(first)?;
            items.push(self.repeated(item)?);
        }
    }

    fn item(&mut self, first: char) -> Result<Item, String> {
        if first == '"' {
            return Ok(Item::Bytes(self.string()?));
        }
        if self.rest.starts_with("s\"") {
            self.rest = &self.rest[1..];
            return Ok(Item::Prefixed(vec![Item::Bytes(self.string()?)]));
        }
        if let Some(rest) = self.rest.strip_prefix("s{") {
            self.rest = rest;
            return Ok(Item::Prefixed(self.items(Some('}'))?));
        }
        if first == '{' {
            self.rest = &self.rest[1..];
            return Ok(Item::Remaining(self.items(Some('}'))?));
        }
        if first == '(' {
            self.rest = &self.rest[1..];
            return Ok(Item::Repeated(self.items(Some(')'))?, 1));
        }
        let end = self
            .rest
            .find(|c: char| c.is_whitespace() || "{}()\"".contains(c))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        let (word, rest) = match word.strip_prefix('$') {
            Some(variable) => {
                self.rest = rest;
                return Ok(match variable {
                    "*" => Item::AnyId,
                    "i" => Item::Index,
                    "d" => Item::Digits,
                    name => Item::Variable(name.to_owned()),
                });
            }
            // `61x9`: the repetition belongs to the digits before it.
            None => match word.find('x') {
                Some(at) => (&word[..at], &self.rest[at..]),
                None => (word, rest),
            },
        };
        self.rest = rest;
        match word {
            "MQTT" => Ok(Item::Bytes(b"\x00\x04MQTT\x04".to_vec())),
            "MQIsdp" => Ok(Item::Bytes(b"\x00\x06MQIsdp\x03".to_vec())),
            digits => hex::decode(digits)
                .map(Item::Bytes)
                .map_err(|error| format!("{digits:?}: {error}")),
        }
    }

    fn repeated(&mut self, item: Item) -> Result<Item, String> {
        let Some(tail) = self.rest.strip_prefix('x') else {
            return Ok(item);
        };
        let digits = tail.len() - tail.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let count = tail[..digits].parse().map_err(|_| "x is followed by how often")?;
        self.rest = &tail[digits..];
        Ok(match item {
            Item::Repeated(items, 1) => Item::Repeated(items, count),
            item => Item::Repeated(vec![item], count),
        })
    }

    fn string(&mut self) -> Result<Vec<u8>, String> {
        let tail = &self.rest[1..];
        let end = tail.find('"').ok_or("a quote that is not closed")?;
        self.rest = &tail[end + 1..];
        Ok(tail[..end].replace('~', self.name).into_bytes())
    }
}

fn flatten(items: &[Item], index: usize, atoms: &mut Vec<Atom>) -> Result<(), String> {
    for item in items {
        match item {
            Item::Bytes(bytes) => push_bytes(atoms, bytes),
            Item::Variable(name) => atoms.push(Atom::Variable(name.clone())),
            Item::AnyId => atoms.push(Atom::AnyId),
            Item::Index => {
                let number = u16::try_from(index).map_err(|_| "$i does not fit two bytes")?;
                push_bytes(atoms, &number.to_be_bytes());
            }
            Item::Digits => push_bytes(atoms, format!("{index:05}").as_bytes()),
            Item::Remaining(inner) => {
                let mut body = Vec::new();
                flatten(inner, index, &mut body)?;
                push_bytes(atoms, &remaining_length(body.iter().map(Atom::len).sum())?);
                append(atoms, body);
            }
            Item::Prefixed(inner) => {
                let mut body = Vec::new();
                flatten(inner, index, &mut body)?;
                let length: usize = body.iter().map(Atom::len).sum();
                let length = u16::try_from(length).map_err(|_| "a string is longer than 65,535 bytes")?;
                push_bytes(atoms, &length.to_be_bytes());
                append(atoms, body);
            }
            // A group that is not repeated keeps the index of the one around it.
            Item::Repeated(inner, 1) => flatten(inner, index, atoms)?,
            // The same each time: one copy is enough to make all.
            Item::Repeated(inner, count) if !is_counted(inner) => {
                let mut once = Vec::new();
                flatten(inner, index, &mut once)?;
                if let [Atom::Bytes(bytes)] = once.as_slice() {
                    push_bytes(atoms, &bytes.repeat(*count));
                } else {
                    (0..*count).for_each(|_| append(atoms, once.clone()));
                }
            }
            Item::Repeated(inner, count) => {
                for index in 1..=*count {
                    flatten(inner, index, atoms)?;
                }
            }
        }
    }
    Ok(())
}

/// Whether a group differs from one time to the next.
fn is_counted(items: &[Item]) -> bool {
    items.iter().any(|item| match item {
        Item::Index | Item::Digits => true,
        Item::Remaining(inner) | Item::Prefixed(inner) | Item::Repeated(inner, 1) => is_counted(inner),
        Item::Bytes(_) | Item::Variable(_) | Item::AnyId | Item::Repeated(..) => false,
    })
}

fn append(atoms: &mut Vec<Atom>, body: Vec<Atom>) {
    for atom in body {
        match atom {
            Atom::Bytes(bytes) => push_bytes(atoms, &bytes),
            other => atoms.push(other),
        }
    }
}

fn push_bytes(atoms: &mut Vec<Atom>, bytes: &[u8]) {
    if let Some(Atom::Bytes(last)) = atoms.last_mut() {
        last.extend_from_slice(bytes);
    } else {
        atoms.push(Atom::Bytes(bytes.to_vec()));
    }
}

fn remaining_length(mut length: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while bytes.len() < 4 {
        let more = length > 127;
        bytes.push((length & 127) as u8 | if more { 128 } else { 0 });
        length >>= 7;
        if !more {
            return Ok(bytes);
        }
    }
    Err("a packet is longer than its length field can say".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(code: &str) -> Vec<u8> {
        match atoms_of(code, "n").unwrap().as_slice() {
            [Atom::Bytes(bytes)] => bytes.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn lengths_are_computed() {
        assert_eq!(
            bytes_of(r#"10 { MQTT 02 003c s"a" }"#),
            b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a"
        );
        assert_eq!(bytes_of("30 { 61x200 }")[..3], [0x30, 0xc8, 0x01]);
        assert_eq!(bytes_of(r#"s{ 61x3 } "~" s"~/b""#), b"\x00\x03aaan\x00\x03n/b");
        assert_eq!(bytes_of("(40 02 $i)x2"), [0x40, 2, 0, 1, 0x40, 2, 0, 2]);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for text in [
            "> c0 00",
            "# no id\n> c0 00",
            "# [X-2] bytes\n> c0 0",
            "# [X-2] brace\n> 10 { c0",
            "# [X-2] quote\n> 10 \"c0",
            "# [X-2] word\n< closed",
            "# [X-2] control\nA! explode",
            "# [X-2] option\n: perhaps",
            "# [X-2] nothing in it",
            "# [X-2] no case\n> @1",
            "# [X-2] a column too few\n> @1 @2\n| c0",
            "# [X-2] a column too many\n> @1\n| c0 | 00",
        ] {
            assert!(parse("test", 0, text).is_err(), "{text}");
        }
    }

    #[test]
    fn each_case_is_a_conversation_of_its_own() {
        let text = "# [X-2] ping\n> @1 @2 s\"~\"\n| c0 | 00   PINGREQ\n| e0 | 00";
        let conversations = parse("test", 0, text).unwrap();
        assert_eq!(
            conversations.iter().map(|c| c.place.as_str()).collect::<Vec<_>>(),
            ["test:3", "test:4"]
        );
        assert_ne!(
            format!("{:?}", conversations[0].steps),
            format!("{:?}", conversations[1].steps)
        );
    }

    #[test]
    fn a_comment_is_set_off_by_two_spaces() {
        let conversation = &parse("test", 0, "# [X-2] ping\n> c0 00      PINGREQ\n< d0 00  PINGRESP").unwrap()[0];
        assert_eq!(conversation.steps.len(), 2);
        assert_eq!(code_of(r#"> "a  b" 00  c"#), r#"> "a  b" 00"#);
    }
}
