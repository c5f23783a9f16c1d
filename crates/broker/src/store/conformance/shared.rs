//! Leases and wake-ups.

use super::*;

pub(super) async fn leases(h: &Handles, fast_forward: &impl AsyncFn(Duration)) {
    let acquire =
        async |name: &str, owner: &str| h.shared().acquire(name, owner, MINUTE).await.unwrap();
    let renew = async |lease: &Lease| h.shared().renew(lease, MINUTE * 2).await.unwrap();
    let start = h.shared().now().await.unwrap();
    let until = start + MINUTE;
    let mine = Lease { name: "wx1".to_owned(), owner: "me".to_owned(), until };
    assert_eq!(acquire("wx1", "me").await, Acquired::Yes(mine.clone()));
    assert_eq!(acquire("wx1", "you").await, Acquired::HeldUntil(until));
    assert_eq!(acquire("wx1", "me").await, Acquired::HeldUntil(until), "no second holding");
    assert!(matches!(acquire("wx2", "you").await, Acquired::Yes(_)), "names are apart");

    // Who does not hold it neither extends nor releases it.
    let forged = Lease { owner: "you".to_owned(), ..mine.clone() };
    assert_eq!(renew(&forged).await, None);
    h.shared().release(&forged).await.unwrap();
    assert_eq!(acquire("wx1", "you").await, Acquired::HeldUntil(until));
    assert_eq!(renew(&Lease { name: "none".to_owned(), ..mine.clone() }).await, None);

    // A renewal counts from now.
    fast_forward(MINUTE - Duration::from_millis(1)).await;
    let renewed = renew(&mine).await.unwrap();
    assert_eq!(renewed.until, h.shared().now().await.unwrap() + MINUTE * 2);
    assert_eq!((&renewed.name, &renewed.owner), (&mine.name, &mine.owner));
    fast_forward(MINUTE).await;
    assert_eq!(acquire("wx1", "you").await, Acquired::HeldUntil(renewed.until));

    // At its end it is nobody's, also for its holder.
    fast_forward(MINUTE).await;
    assert_eq!(renew(&renewed).await, None);
    let Acquired::Yes(yours) = acquire("wx1", "you").await else { panic!("it is free") };
    assert_eq!(renew(&renewed).await, None);
    h.shared().release(&renewed).await.unwrap();
    assert_eq!(acquire("wx1", "me").await, Acquired::HeldUntil(yours.until));
    h.shared().release(&yours).await.unwrap();
    h.shared().release(&yours).await.unwrap();
    assert!(matches!(acquire("wx1", "me").await, Acquired::Yes(_)), "released");

    // One that was given by a clock far ahead holds nobody off after the clock was set back.
    let day = Duration::from_secs(86_400);
    let far = h.shared().acquire("far", "me", day).await.unwrap();
    assert!(matches!(far, Acquired::Yes(_)));
    assert!(matches!(acquire("far", "you").await, Acquired::Yes(_)));

    // One of many wins.
    let owners: Vec<_> = (0..10).map(|at| format!("owner {at}")).collect();
    let answers = join_all(owners.iter().map(|owner| acquire("race", owner))).await;
    let won: Vec<_> = answers
        .iter()
        .filter_map(|answer| match answer {
            Acquired::Yes(lease) => Some(lease),
            Acquired::HeldUntil(_) => None,
        })
        .collect();
    assert_eq!(won.len(), 1);
    assert!(renew(won[0]).await.is_some());
}

/// Waits as one who would rather fail than wait for ever.
async fn woken(shared: &dyn Shared, cursor: u64) -> u64 {
    tokio::time::timeout(MINUTE, shared.woken(cursor)).await.expect("a wake-up").unwrap()
}

pub(super) async fn wakes(h: &Handles) {
    // A cursor belongs to the handle that answered it.
    for (at, shared) in h.shared.iter().map(AsRef::as_ref).enumerate() {
        let first = woken(shared, 0).await;
        assert_ne!(first, 0);
        let (second, ()) =
            tokio::join!(woken(shared, first), async { shared.wake().await.unwrap() });
        assert_ne!(second, first);

        // What any handle writes wakes, before the wait or during it.
        for round in 0..h.stores.len() {
            let cursor = woken(shared, 0).await;
            h.add_app(&format!("before-{at}-{round}")).await;
            let after = woken(shared, cursor).await;
            assert_ne!(after, cursor);
            let name = format!("during-{at}-{round}");
            let (later, app) = tokio::join!(woken(shared, after), h.add_app(&name));
            assert_ne!(later, after);
            assert!(h.store().find_app(&app).await.unwrap().is_some());
        }
    }
}
