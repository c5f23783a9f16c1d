//! Work that callers of one process do together: the first one starts it, the others wait for the
//! same result.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

/// The pieces of work under way, by what they are about.
pub(crate) struct Together<K, V>(Arc<Mutex<HashMap<K, Awaited<V>>>>);

/// The result of a piece of work, once there is one.
type Awaited<V> = watch::Receiver<Option<V>>;

impl<K, V> Together<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Joins the work about `key`, or begins it in a task of its own, which goes on when its callers
    /// go away. `None`: it died without a result.
    pub(crate) async fn join<F>(&self, tasks: &TaskTracker, key: K, work: F) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (mut awaited, begun) = {
            let mut under_way = lock(&self.0);
            match under_way.get(&key) {
                Some(awaited) => (awaited.clone(), None),
                None => {
                    let (end, awaited) = watch::channel(None);
                    under_way.insert(key.clone(), awaited.clone());
                    (awaited, Some((end, Gone { of: Arc::clone(&self.0), key })))
                }
            }
        };
        if let Some((end, gone)) = begun {
            tasks.spawn(async move {
                let result = work.await;
                // Who comes from now on begins anew.
                drop(gone);
                end.send_replace(Some(result));
            });
        }
        awaited.wait_for(Option::is_some).await.ok().and_then(|result| result.clone())
    }
}

impl<K, V> Default for Together<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// Takes a piece of work out of those under way, also when it panics.
struct Gone<K: Eq + Hash, V> {
    of: Arc<Mutex<HashMap<K, Awaited<V>>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Gone<K, V> {
    fn drop(&mut self) {
        lock(&self.of).remove(&self.key);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use futures_util::future::join_all;

    use super::*;

    const A_SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn many_callers_are_one_piece_of_work() {
        let (together, tasks) = (Together::<u8, usize>::default(), TaskTracker::new());
        let begun = Arc::new(AtomicUsize::new(0));
        let work = || {
            let begun = Arc::clone(&begun);
            async move {
                tokio::time::sleep(A_SECOND).await;
                begun.fetch_add(1, Ordering::Relaxed)
            }
        };
        let results = join_all((0..10).map(|_| together.join(&tasks, 1, work()))).await;
        assert_eq!(results, [Some(0); 10]);
        let (one, two) =
            tokio::join!(together.join(&tasks, 1, work()), together.join(&tasks, 2, work()));
        assert_ne!(one, two, "the next time, and another key, are other work");
        assert!(lock(&together.0).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn it_goes_on_without_its_callers_and_ends_when_it_dies() {
        let (together, tasks) = (Together::<u8, u8>::default(), TaskTracker::new());
        let slow = async {
            tokio::time::sleep(A_SECOND).await;
            7
        };
        let gone = tokio::time::timeout(A_SECOND / 2, together.join(&tasks, 1, slow)).await;
        assert!(gone.is_err());
        assert_eq!(together.join(&tasks, 1, async { 8 }).await, Some(7), "it was under way");
        let dies = async { panic!("on purpose") };
        assert_eq!(together.join(&tasks, 1, dies).await, None);
        assert_eq!(together.join(&tasks, 1, async { 9 }).await, Some(9));
    }
}
