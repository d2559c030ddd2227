//! What a run has found: a table for people, a score for machines.
//!
//! Called  by `main`, and by tests that ask which statements fail.
//! Holds   - a statement fails if one of its cases does, passes if one was played and none failed, and is skipped otherwise.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use crate::Section;
use crate::bench::{Failure, Outcome, Stop};

pub enum Outcomes {
    Untestable(&'static str),
    /// Title and end of each case.
    Played(Vec<(&'static str, Outcome)>),
}

pub struct Finding {
    pub id: &'static str,
    pub sentence: &'static str,
    pub section: Section,
    pub outcomes: Outcomes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Pass,
    Fail,
    Skip,
    NotTestable,
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "FAIL",
            Verdict::Skip => "skip",
            Verdict::NotTestable => "not testable",
        })
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub id: &'static str,
    pub sentence: &'static str,
    pub verdict: Verdict,
    /// Why it was skipped, or cannot be tested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<CaseFailure>,
    #[serde(skip)]
    pub section: Option<Section>,
}

#[derive(Clone, Debug, Serialize)]
pub struct CaseFailure {
    pub case: &'static str,
    #[serde(flatten)]
    pub failure: Failure,
}

#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Score {
    pub pass: usize,
    pub fail: usize,
    pub skip: usize,
    pub not_testable: usize,
}

pub struct Report {
    pub rows: Vec<Row>,
}

/// The file that --json writes.
#[derive(Serialize)]
struct Json<'a> {
    suite: &'static str,
    broker: &'a str,
    mqtt_3_1_1: Score,
    mqtt_3_1: Score,
    statements: &'a [Row],
}

impl Report {
    pub fn new(findings: Vec<Finding>) -> Report {
        Report {
            rows: findings.into_iter().map(Row::new).collect(),
        }
    }

    pub fn score(&self, section: Section) -> Score {
        let mut score = Score::default();
        for row in self.rows.iter().filter(|row| row.section == Some(section)) {
            *match row.verdict {
                Verdict::Pass => &mut score.pass,
                Verdict::Fail => &mut score.fail,
                Verdict::Skip => &mut score.skip,
                Verdict::NotTestable => &mut score.not_testable,
            } += 1;
        }
        score
    }

    pub fn has_failed(&self) -> bool {
        self.rows.iter().any(|row| row.verdict == Verdict::Fail)
    }

    /// Statements with this verdict.
    pub fn ids(&self, verdict: Verdict) -> Vec<&'static str> {
        self.rows
            .iter()
            .filter(|row| row.verdict == verdict)
            .map(|row| row.id)
            .collect()
    }

    pub fn json(&self, broker: &str) -> String {
        let json = Json {
            suite: concat!("skein-conformance ", env!("CARGO_PKG_VERSION")),
            broker,
            mqtt_3_1_1: self.score(Section::Mqtt311),
            mqtt_3_1: self.score(Section::Mqtt31),
            statements: &self.rows,
        };
        serde_json::to_string_pretty(&json).expect("strings and numbers can be written as JSON") + "\n"
    }
}

impl Row {
    fn new(finding: Finding) -> Row {
        let Finding {
            id,
            sentence,
            section,
            outcomes,
        } = finding;
        let (verdict, reason, failures) = match outcomes {
            Outcomes::Untestable(reason) => (Verdict::NotTestable, Some(reason.to_owned()), Vec::new()),
            Outcomes::Played(cases) => verdict_of(cases),
        };
        Row {
            id,
            sentence,
            verdict,
            reason,
            failures,
            section: Some(section),
        }
    }
}

fn verdict_of(cases: Vec<(&'static str, Outcome)>) -> (Verdict, Option<String>, Vec<CaseFailure>) {
    let (mut failures, mut reason, mut has_passed) = (Vec::new(), None, false);
    for (case, outcome) in cases {
        match outcome {
            Ok(()) => has_passed = true,
            Err(Stop::Skipped(why)) => reason = Some(why),
            Err(Stop::Failed(found)) => failures.extend(found.into_iter().map(|failure| CaseFailure { case, failure })),
        }
    }
    if !failures.is_empty() {
        (Verdict::Fail, None, failures)
    } else if has_passed {
        (Verdict::Pass, None, failures)
    } else {
        (Verdict::Skip, reason, failures)
    }
}

impl Display for Score {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let tested = self.pass + self.fail;
        write!(f, "{} of {tested} pass, {} fail", self.pass, self.fail)?;
        write!(
            f,
            "; {} skipped, {} not testable from outside",
            self.skip, self.not_testable
        )
    }
}

/// One line per statement; below a failure what was sent, expected and received.
impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (section, title) in [(Section::Mqtt311, "MQTT 3.1.1"), (Section::Mqtt31, "MQTT 3.1")] {
            let mut rows = self.rows.iter().filter(|row| row.section == Some(section)).peekable();
            if rows.peek().is_none() {
                continue;
            }
            for row in rows {
                writeln!(f, "{:<14}  {:<12}  {}", row.id, row.verdict, row.sentence)?;
                if let Some(reason) = &row.reason {
                    writeln!(f, "{:32}{reason}", "")?;
                }
                for CaseFailure { case, failure } in &row.failures {
                    let variant = if failure.variant.is_empty() {
                        String::new()
                    } else {
                        format!(": {}", failure.variant)
                    };
                    writeln!(f, "    {case}{variant}")?;
                    writeln!(f, "        sent      {}", failure.sent)?;
                    writeln!(f, "        expected  {}", failure.expected)?;
                    writeln!(f, "        received  {}", failure.received)?;
                }
            }
            writeln!(f, "{title}: {}\n", self.score(section))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(id: &'static str, cases: Vec<(&'static str, Outcome)>) -> Finding {
        Finding {
            id,
            sentence: "so it is",
            section: Section::Mqtt311,
            outcomes: Outcomes::Played(cases),
        }
    }

    fn failed() -> Outcome {
        Err(Stop::Failed(vec![Failure {
            variant: "loud".into(),
            sent: "c0 00".into(),
            expected: "PINGRESP".into(),
            received: "nothing".into(),
        }]))
    }

    #[test]
    fn one_case_that_fails_fails_the_statement_and_a_skipped_one_does_not() {
        let skipped = || Err(Stop::Skipped("no such topic".into()));
        let untestable = Finding {
            outcomes: Outcomes::Untestable("it binds Clients only"),
            ..finding("e", Vec::new())
        };
        let report = Report::new(vec![
            finding("a", vec![("x", Ok(())), ("y", failed())]),
            finding("b", vec![("x", Ok(())), ("y", skipped())]),
            finding("c", vec![("y", skipped())]),
            finding("d", vec![("y", skipped()), ("z", failed())]),
            untestable,
        ]);
        let verdicts: Vec<Verdict> = report.rows.iter().map(|row| row.verdict).collect();
        use Verdict::*;
        assert_eq!(verdicts, [Fail, Pass, Skip, Fail, NotTestable]);
        let score = report.score(Section::Mqtt311);
        assert_eq!(
            score.to_string(),
            "1 of 3 pass, 2 fail; 1 skipped, 1 not testable from outside"
        );
        assert!(report.has_failed());
        let table = report.to_string();
        for words in [
            "FAIL",
            "y: loud",
            "sent      c0 00",
            "expected  PINGRESP",
            "received  nothing",
            "no such topic",
        ] {
            assert!(table.contains(words), "{words}: {table}");
        }
        let json: serde_json::Value = serde_json::from_str(&report.json("here")).unwrap();
        assert_eq!(json["mqtt_3_1_1"]["fail"], 2);
        assert_eq!(json["statements"][0]["failures"][0]["received"], "nothing");
        assert_eq!(json["statements"][2]["reason"], "no such topic");
    }
}
