//! The cores, as the control thread asks them.
//!
//! Owns    the way to each core, and the rule which of them has a device.
//! Called  by the services of `http`; by the desk, which tells all of them that the accounts have changed.
//! Holds   - a question is sent when it is asked, whether its answer is waited for or not;
//!         - a core that stops drops what it was asked: the answer is then [`Unanswered`].

use std::sync::Arc;

use tokio::sync::oneshot;

use super::error::ApiError;
use crate::registry::access::{AccountId, AccountsChange};
use crate::routing::shard_key::ShardKey;
use crate::shard::query::{Answer, Query};
use crate::worker::{Control, Mailbox, Question};

/// A handle; all of them reach the same cores.
#[derive(Clone)]
pub struct Cores(Arc<Inner>);

struct Inner {
    doors: Vec<Door>,
    shard_key: ShardKey,
}

/// Hands something over to a core, at once.
type Door = Box<dyn Fn(Control) + Send + Sync>;

/// The core is stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered;

impl From<Unanswered> for ApiError {
    fn from(Unanswered: Unanswered) -> ApiError {
        ApiError::Unavailable
    }
}

/// Of a question that is answered with done, or with why not.
pub fn succeeded(answer: Answer) -> Result<(), ApiError> {
    match answer {
        Answer::Done => Ok(()),
        Answer::Refused(refusal) => Err(refusal.into()),
        Answer::Registered | Answer::Sessions { .. } => unreachable!("a core answers what it was asked"),
    }
}

impl Cores {
    pub fn new(mailboxes: Vec<Arc<Mailbox>>, shard_key: ShardKey) -> Cores {
        let door = |mailbox: Arc<Mailbox>| -> Door { Box::new(move |control| mailbox.send(control)) };
        Cores::behind(mailboxes.into_iter().map(door).collect(), shard_key)
    }

    /// In place of cores, what a test has.
    pub fn behind(doors: Vec<Door>, shard_key: ShardKey) -> Cores {
        assert!(!doors.is_empty());
        Cores(Arc::new(Inner { doors, shard_key }))
    }

    pub fn count(&self) -> usize {
        self.0.doors.len()
    }

    /// Asks the core that owns a device, and so all topics of it.
    pub async fn ask_owner(&self, account: AccountId, device: &str, query: Query) -> Result<Answer, Unanswered> {
        let owner = self.0.shard_key.owner_of_device(account, device);
        self.ask(usize::from(owner), query).await
    }

    /// Asks one core, by its number.
    pub async fn ask_core(&self, core: usize, query: Query) -> Result<Answer, Unanswered> {
        self.ask(core, query).await
    }

    /// Asks every core: all at once, answers in the order of the cores.
    pub async fn ask_all(&self, query: impl Fn() -> Query) -> Result<Vec<Answer>, Unanswered> {
        let asked: Vec<_> = (0..self.count()).map(|core| self.ask(core, query())).collect();
        let mut answers = Vec::with_capacity(asked.len());
        for answer in asked {
            answers.push(answer.await?);
        }
        Ok(answers)
    }

    /// Sends a change of the accounts to every core. It is in force there before any question asked later.
    pub fn tell_all(&self, change: &AccountsChange) {
        for door in &self.0.doors {
            door(Control::Accounts(Box::new(change.clone())));
        }
    }

    fn ask(&self, core: usize, query: Query) -> impl Future<Output = Result<Answer, Unanswered>> + use<> {
        let (answer, answered) = oneshot::channel();
        let reply = Box::new(move |given| drop(answer.send(given)));
        (self.0.doors[core])(Control::Ask(Box::new(Question { query, reply })));
        async { answered.await.map_err(|_| Unanswered) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::mqtt::topic::TopicName;
    use crate::registry::channel::ChannelId;
    use crate::routing::shard_key::Division;
    use crate::shard::query::Refusal;

    type Asked = Arc<Mutex<Vec<(usize, Option<Query>)>>>;

    /// Cores that refuse everything with what stands for their number, and write down what they were asked.
    fn cores(count: u16) -> (Cores, Asked) {
        let asked = Asked::default();
        let door = |core: usize| -> Door {
            let asked = Arc::clone(&asked);
            Box::new(move |control| match control {
                Control::Ask(question) => {
                    asked.lock().unwrap().push((core, Some(question.query)));
                    let refusal = [Refusal::NoDevice, Refusal::DeviceInUse, Refusal::BadPayload][core % 3];
                    (question.reply)(Answer::Refused(refusal));
                }
                Control::Accounts(_) => asked.lock().unwrap().push((core, None)),
                _ => unreachable!(),
            })
        };
        let doors = (0..usize::from(count)).map(door).collect();
        (
            Cores::behind(doors, ShardKey::new([1, 2, 3, 4], count, Division::Devices)),
            asked,
        )
    }

    fn unmap() -> Query {
        Query::UnmapChannel {
            account: AccountId(1),
            channel: ChannelId::new(3).unwrap(),
        }
    }

    #[tokio::test]
    async fn all_are_asked_in_order_and_one_is_asked_alone() {
        let (cores, asked) = cores(3);
        let answers = cores.ask_all(unmap).await.unwrap();
        let refusals = [Refusal::NoDevice, Refusal::DeviceInUse, Refusal::BadPayload];
        assert_eq!(answers, refusals.map(Answer::Refused));
        assert_eq!(
            asked.lock().unwrap().iter().map(|(core, _)| *core).collect::<Vec<_>>(),
            [0, 1, 2]
        );
        asked.lock().unwrap().clear();
        assert_eq!(
            cores.ask_core(1, unmap()).await,
            Ok(Answer::Refused(Refusal::DeviceInUse))
        );
        assert_eq!(*asked.lock().unwrap(), [(1, Some(unmap()))]);
    }

    #[tokio::test]
    async fn a_device_is_asked_for_where_its_topics_are() {
        let (cores, asked) = cores(64);
        let key = ShardKey::new([1, 2, 3, 4], 64, Division::Devices);
        let token = "A0".repeat(16);
        for device in ["pump-07", "a b", "ä"] {
            cores.ask_owner(AccountId(1), device, unmap()).await.unwrap();
            let topic = format!("{token}/json/{device}/inlet");
            let owner = key.owner(AccountId(1), TopicName::trusted(&topic));
            assert_eq!(asked.lock().unwrap().pop().unwrap().0, usize::from(owner));
        }
    }

    #[tokio::test]
    async fn a_core_that_stops_leaves_no_question_open() {
        let cores = Cores::behind(vec![Box::new(drop)], ShardKey::new([1, 2, 3, 4], 1, Division::Devices));
        assert_eq!(cores.ask_all(unmap).await, Err(Unanswered));
    }

    #[test]
    fn a_change_of_the_accounts_goes_to_every_core() {
        let (cores, asked) = cores(3);
        cores.tell_all(&AccountsChange {
            accounts: Arc::default(),
            ended: None,
        });
        assert_eq!(*asked.lock().unwrap(), [(0, None), (1, None), (2, None)]);
    }
}
