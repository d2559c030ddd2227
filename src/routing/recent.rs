//! The last answer to "who wants this topic": messages come in trains on one topic, and each asks again.
//!
//! Owns    the topic that was asked for, and the answer.
//! Called  by `shard` in front of `Subscriptions::matches` and `Interest::matches`, which say when their answers may change.
//! Holds   - an answer is used again for the very same topic while nobody has subscribed or unsubscribed since.

use crate::mqtt::topic::TopicName;

pub struct Recent<T> {
    /// Empty: nothing has been asked; a Topic Name is not.
    topic: String,
    version: u64,
    answer: Vec<T>,
}

impl<T> Recent<T> {
    /// Has `find` replace the answer, unless it is the one to this very question.
    #[inline]
    pub fn look_up(&mut self, topic: TopicName<'_>, version: u64, find: impl FnOnce(&mut Vec<T>)) {
        if self.topic == topic.as_str() && self.version == version {
            return;
        }
        find(&mut self.answer);
        self.topic.clear();
        self.topic.push_str(topic.as_str());
        self.version = version;
    }

    pub fn answer(&self) -> &[T] {
        &self.answer
    }
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Recent {
            topic: String::new(),
            version: 0,
            answer: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_used_again_for_the_same_topic_and_version_alone() {
        let mut recent = Recent::default();
        let mut asked = 0;
        let mut look_up = |topic, version| {
            recent.look_up(TopicName::new(topic).unwrap(), version, |answer| {
                asked += 1;
                *answer = vec![asked];
            });
            recent.answer()[0]
        };
        assert_eq!(look_up("a", 0), 1);
        assert_eq!(look_up("a", 0), 1);
        assert_eq!(look_up("a/b", 0), 2);
        assert_eq!(look_up("a", 0), 3);
        assert_eq!(look_up("a", 1), 4);
        assert_eq!(look_up("a", 1), 4);
    }
}
