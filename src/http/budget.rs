//! Large answers on their way to their clients: how many bytes of them there are at a time.
//!
//! Owns    the count, over all accounts and for each.
//! Called  by the services whose answers may be large, through [`large`].
//! Holds   - an answer counts until its client has taken it all, or has gone: a client that reads slowly holds what is its own;
//!         - at most [`HTTP_ANSWERS_BYTES_MAX`] in all and [`HTTP_ANSWERS_PER_ACCOUNT_BYTES_MAX`] of one account; one alone may
//!           have any size.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

use super::answer::json_text;
use super::error::ApiError;
use crate::limits::{HTTP_ANSWERS_BYTES_MAX, HTTP_ANSWERS_PER_ACCOUNT_BYTES_MAX, HTTP_SMALL_ANSWER_BYTES};
use crate::registry::access::AccountId;

/// A handle; all of them count the same.
#[derive(Clone, Default)]
pub struct Budget(Arc<Mutex<Taken>>);

#[derive(Default)]
struct Taken {
    bytes: usize,
    by_account: HashMap<AccountId, usize>,
}

/// What one answer has of it, until this goes.
struct Share {
    budget: Budget,
    account: AccountId,
    bytes: usize,
}

impl Budget {
    fn take(&self, account: AccountId, bytes: usize) -> Option<Share> {
        let mut taken = self.taken();
        let of_account = taken.by_account.get(&account).copied().unwrap_or(0);
        let has_room = |taken: usize, max: usize| taken == 0 || taken + bytes <= max;
        let may =
            has_room(taken.bytes, HTTP_ANSWERS_BYTES_MAX) && has_room(of_account, HTTP_ANSWERS_PER_ACCOUNT_BYTES_MAX);
        may.then(|| {
            taken.bytes += bytes;
            taken.by_account.insert(account, of_account + bytes);
            Share {
                budget: self.clone(),
                account,
                bytes,
            }
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().expect("nobody panics while holding it")
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.budget.taken();
        taken.bytes -= self.bytes;
        let left = taken.by_account.get_mut(&self.account).expect("it has this share");
        *left -= self.bytes;
        if *left == 0 {
            taken.by_account.remove(&self.account);
        }
    }
}

/// An answer of JSON that may be large. One too many is refused like a call too many: there is room again when the client has
/// read the others.
pub fn large(budget: &Budget, account: AccountId, json: String) -> Result<Response, ApiError> {
    if json.len() <= HTTP_SMALL_ANSWER_BYTES {
        return Ok(json_text(StatusCode::OK, json));
    }
    let share = budget.take(account, json.len()).ok_or(ApiError::TooManyRequests)?;
    let body = Counted {
        rest: json.into(),
        _share: share,
    };
    Ok(json_text(StatusCode::OK, Body::new(body)))
}

/// A body that counts as long as it is there.
struct Counted {
    rest: Bytes,
    _share: Share,
}

impl Counted {
    /// What is handed over at a time, so that the rest is still here while the client reads.
    const PART_BYTES: usize = 256 * 1024;
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let len = self.rest.len().min(Counted::PART_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(len)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    const ONE: AccountId = AccountId(1);
    const OTHER: AccountId = AccountId(2);

    fn answer(budget: &Budget, account: AccountId, bytes: usize) -> Result<Response, ApiError> {
        large(budget, account, "x".repeat(bytes))
    }

    #[tokio::test]
    async fn an_answer_counts_until_it_is_read_or_dropped() {
        let budget = Budget::default();
        let half = HTTP_ANSWERS_PER_ACCOUNT_BYTES_MAX / 2;
        let first = answer(&budget, ONE, half).unwrap();
        let second = answer(&budget, ONE, half).unwrap();
        assert_eq!(answer(&budget, ONE, half).err(), Some(ApiError::TooManyRequests));
        assert!(
            answer(&budget, ONE, HTTP_SMALL_ANSWER_BYTES).is_ok(),
            "a small one does not count"
        );
        assert!(answer(&budget, OTHER, half).is_ok());
        assert_eq!(first.headers()["content-type"], "application/json");
        assert_eq!(to_bytes(first.into_body(), usize::MAX).await.unwrap().len(), half);
        drop((answer(&budget, ONE, half).unwrap(), second));
        assert!(budget.taken().by_account.is_empty() && budget.taken().bytes == 0);
    }

    #[test]
    fn one_alone_may_be_of_any_size_and_all_together_are_bounded() {
        let budget = Budget::default();
        let alone = budget.take(ONE, HTTP_ANSWERS_BYTES_MAX + 1).unwrap();
        assert!(budget.take(ONE, 1).is_none() && budget.take(OTHER, 1).is_none());
        drop(alone);
        assert!(budget.take(OTHER, 1).is_some());
    }
}
