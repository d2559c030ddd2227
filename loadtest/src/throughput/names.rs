//! What the clients of a run are called, and their topics.
//!
//! Called  by `throughput` before it connects.
//! Holds   - the templates are checked first: client ids differ from each other, and who is to share a topic does;
//!         - a default client id has at most 23 characters, which every broker takes.

use std::collections::HashSet;

use anyhow::{Result, bail};

use super::Topics;
use crate::packet::{CLIENT_ID_CHARS_MAX, TOPIC_BYTES_MAX};

#[derive(Clone, Debug)]
pub struct Names {
    pub topics: Topics,
    pub prefix: String,
    /// Of topics, below the prefix.
    pub topic: Option<String>,
    pub client_id: Option<String>,
    pub shared_topics: usize,
    pub run: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Publisher,
    Subscriber,
}

impl Names {
    pub fn client_id(&self, role: Role, number: usize) -> String {
        let letter = match role {
            Role::Publisher => "p",
            Role::Subscriber => "s",
        };
        let run = format!("{:08x}", self.run);
        match &self.client_id {
            None => format!("sl{run}{letter}{number}"),
            Some(template) => template
                .replace("{run}", &run)
                .replace("{role}", letter)
                .replace("{number}", &number.to_string()),
        }
    }

    /// Those `publisher` sends to in turn.
    pub fn topics(&self, publisher: usize) -> Vec<String> {
        let count = if self.topics == Topics::Shared {
            self.shared_topics
        } else {
            1
        };
        let (number, client) = (publisher.to_string(), self.client_id(Role::Publisher, publisher));
        let topic = |topic: usize| {
            let own = self
                .template()
                .replace("{publisher}", &number)
                .replace("{client}", &client)
                .replace("{run}", &format!("{:08x}", self.run))
                .replace("{topic}", &topic.to_string());
            self.below_prefix(&own)
        };
        (0..count).map(topic).collect()
    }

    /// Topic Filters of `subscriber`.
    pub fn filters(&self, subscriber: usize) -> Vec<String> {
        match (self.topics, &self.topic) {
            (Topics::Pairs, _) => self.topics(subscriber),
            (Topics::FanOut | Topics::Shared, _) => self.topics(0),
            (Topics::FanIn, None) => vec![self.below_prefix("#")],
            (Topics::FanIn, Some(template)) => {
                let levels = template.split('/').map(|level| {
                    if level.contains("{publisher}") || level.contains("{client}") {
                        "+".to_string()
                    } else {
                        level.replace("{run}", &format!("{:08x}", self.run))
                    }
                });
                vec![self.below_prefix(&levels.collect::<Vec<_>>().join("/"))]
            }
        }
    }

    pub fn check(&self, publishers: usize, subscribers: usize) -> Result<()> {
        let has = |name: &str| self.template().contains(name);
        let is_own = has("{publisher}") || has("{client}");
        match self.topics {
            Topics::Pairs | Topics::FanIn if !is_own && publishers > 1 => bail!(
                "--topic {} gives all publishers one topic, here each has its own: it wants {{publisher}} or {{client}}",
                self.template()
            ),
            Topics::FanOut | Topics::Shared if is_own => bail!(
                "--topic {} gives each publisher a topic of its own, here they share theirs: {{publisher}} and {{client}} \
                 are for --topics pairs and fan-in",
                self.template()
            ),
            Topics::Shared if !has("{topic}") && self.shared_topics > 1 => bail!(
                "--topic {} is one topic, --shared-topics asks for {}: it wants {{topic}}",
                self.template(),
                self.shared_topics
            ),
            _ => {}
        }
        let longest = self.topics(publishers - 1).iter().map(String::len).max().unwrap_or(0);
        if longest == 0 || longest > TOPIC_BYTES_MAX || self.template().contains(['+', '#']) {
            bail!(
                "--topic {} is no topic to publish to: 1 to {TOPIC_BYTES_MAX} bytes without + and #",
                self.template()
            );
        }
        if let Some(template) = &self.client_id {
            let mut ids = HashSet::new();
            let publishers = (0..publishers).map(|i| self.client_id(Role::Publisher, i));
            let all = publishers.chain((0..subscribers).map(|i| self.client_id(Role::Subscriber, i)));
            for id in all {
                if id.is_empty() || id.len() > TOPIC_BYTES_MAX {
                    bail!("--client-id {template} makes an id of {} bytes", id.len());
                }
                if let Some(id) = ids.replace(id) {
                    bail!("--client-id {template} calls two clients {id}: {{role}} and {{number}} tell them apart");
                }
            }
        } else {
            assert!(self.client_id(Role::Subscriber, subscribers).len() <= CLIENT_ID_CHARS_MAX);
        }
        Ok(())
    }

    fn template(&self) -> &str {
        match (&self.topic, self.topics) {
            (Some(template), _) => template,
            (None, Topics::Pairs | Topics::FanIn) => "{publisher}",
            (None, Topics::FanOut) => "all",
            (None, Topics::Shared) => "shared/{topic}",
        }
    }

    fn below_prefix(&self, own: &str) -> String {
        match self.prefix.as_str() {
            "" => own.to_string(),
            prefix => format!("{prefix}/{own}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(topics: Topics, topic: Option<&str>) -> Names {
        Names {
            topics,
            prefix: "bench".into(),
            topic: topic.map(String::from),
            client_id: None,
            shared_topics: 3,
            run: 0xAB,
        }
    }

    #[test]
    fn a_topic_template_names_who_publishes_and_the_filters_find_it() {
        let pairs = names(Topics::Pairs, Some("{run}/{client}/up"));
        let own = ["bench/000000ab/sl000000abp2/up"];
        assert_eq!(
            (pairs.topics(2), pairs.filters(2)),
            (own.map(String::from).to_vec(), own.map(String::from).to_vec())
        );
        assert_eq!(
            names(Topics::FanIn, Some("{run}/{client}/up")).filters(0),
            ["bench/000000ab/+/up"]
        );
        assert_eq!(names(Topics::FanIn, None).filters(0), ["bench/#"]);
        let shared = names(Topics::Shared, None);
        assert_eq!(shared.topics(0), ["bench/shared/0", "bench/shared/1", "bench/shared/2"]);
        assert_eq!(shared.filters(7), shared.topics(1));
        let bare = Names {
            prefix: String::new(),
            ..names(Topics::FanOut, Some("x"))
        };
        assert_eq!(bare.topics(0), ["x"]);
    }

    #[test]
    fn a_template_that_does_not_fit_is_refused_with_a_sentence() {
        let refused = |topics, topic| names(topics, Some(topic)).check(4, 4).unwrap_err().to_string();
        assert!(refused(Topics::Pairs, "x").contains("{publisher}"));
        assert!(refused(Topics::FanIn, "x/{run}").contains("{client}"));
        assert!(refused(Topics::FanOut, "{client}").contains("share"));
        assert!(refused(Topics::Shared, "x").contains("{topic}"));
        assert!(refused(Topics::FanOut, "a/#").contains("without + and #"));
        let with_id = |template: &str| Names {
            client_id: Some(template.into()),
            ..names(Topics::Pairs, None)
        };
        assert!(
            with_id("dev-{number}")
                .check(2, 2)
                .unwrap_err()
                .to_string()
                .contains("{role}")
        );
        assert!(with_id("").check(1, 1).is_err());
        let named = with_id("dev-{run}-{role}{number}");
        named.check(2, 2).unwrap();
        assert_eq!(named.client_id(Role::Subscriber, 1), "dev-000000ab-s1");
    }
}
