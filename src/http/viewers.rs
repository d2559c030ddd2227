//! The threads that look into the store.
//!
//! Owns    [`HTTP_VIEWS_MAX`] of them, a pool of their own: what telling of events blocks holds up no request, a crowd of requests
//!         no notification. And no more than that, since each keeps an arena of the allocator for what its largest answer took.
//! Called  by `Api::view`.
//! Holds   - who waits for a thread and hangs up has cost nothing;
//!         - a look that has begun goes on to its end, which nobody waits for at a stop.

use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

use crate::limits::HTTP_VIEWS_MAX;

pub struct Viewers {
    places: Arc<Semaphore>,
    /// Used for its pool alone.
    threads: Option<Runtime>,
}

impl Viewers {
    pub fn new() -> Viewers {
        let threads = Builder::new_current_thread()
            .max_blocking_threads(HTTP_VIEWS_MAX)
            .thread_name("http-view")
            .on_thread_start(super::step_back)
            .build();
        Viewers {
            places: Arc::new(Semaphore::new(HTTP_VIEWS_MAX)),
            threads: Some(threads.expect("it has no driver, so it opens nothing")),
        }
    }

    /// What `look` returns; `None` once they are stopping.
    pub async fn look<T: Send + 'static>(&self, look: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        // The next may begin before this one's thread is ready for it, and then waits in the pool.
        let place = Arc::clone(&self.places).acquire_owned().await;
        let threads = self.threads.as_ref()?;
        let looked = threads.spawn_blocking(move || {
            let _place = place;
            look()
        });
        looked.await.ok()
    }
}

impl Drop for Viewers {
    fn drop(&mut self) {
        if let Some(threads) = self.threads.take() {
            threads.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[tokio::test]
    async fn a_crowd_is_served_by_so_many_threads_and_no_more() {
        let viewers = Arc::new(Viewers::new());
        let (at_once, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let seen = Arc::new(Mutex::new(HashSet::new()));
        let looks: Vec<_> = (0..500)
            .map(|number| {
                let (viewers, at_once) = (Arc::clone(&viewers), Arc::clone(&at_once));
                let (most, seen) = (Arc::clone(&most), Arc::clone(&seen));
                tokio::spawn(async move {
                    let look = move || {
                        most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        seen.lock().unwrap().insert(thread::current().id());
                        thread::yield_now();
                        at_once.fetch_sub(1, Ordering::SeqCst);
                        number
                    };
                    viewers.look(look).await
                })
            })
            .collect();
        for (number, look) in looks.into_iter().enumerate() {
            assert_eq!(look.await.unwrap(), Some(number));
        }
        assert!(most.load(Ordering::SeqCst) <= HTTP_VIEWS_MAX);
        assert!(
            seen.lock().unwrap().len() <= HTTP_VIEWS_MAX,
            "a thread that is ready is used again"
        );
    }

    #[tokio::test]
    async fn a_look_that_panics_is_nobody_elses_trouble() {
        let viewers = Viewers::new();
        assert_eq!(viewers.look(|| -> u8 { panic!("of a test") }).await, None);
        assert_eq!(viewers.look(|| 1).await, Some(1));
    }
}
