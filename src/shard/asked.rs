//! Questions of the control thread, and changes of the accounts.

use crate::registry::access::{Access, AccountsChange};

use super::Shard;
use super::event::Output;
use super::query::{Answer, Query, Refusal, Ticket};

impl Shard {
    pub(super) fn asked(&mut self, ticket: Ticket, query: Query) {
        let _ = query;
        let answer = Answer::Refused(Refusal::NoAccount);
        self.outputs.push_back(Output::Answer(Box::new((ticket, answer))));
    }

    pub(super) fn accounts_changed(&mut self, change: AccountsChange) {
        self.access = Access::Platform(change.accounts);
    }
}
