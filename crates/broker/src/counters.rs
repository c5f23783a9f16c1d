//! What the broker counts about itself.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters since the start of the process.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub(crate) $name: Counter,)*
        }

        /// The counters read at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Figures {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Reads all counters.
            pub fn read(&self) -> Figures {
                Figures { $($name: self.$name.0.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Calls to WeChat that asked for a token or ticket.
    fetches,
    /// Fetches that failed.
    fetch_failures,
    /// New generations that we fetched and stored.
    rotations,
    /// Tokens that somebody outside ended before their time.
    foreign_refreshes,
    /// Reports taken.
    reports,
    /// Reports of a token that turned out to work.
    reports_unfounded,
    /// Reports of a token that we never issued, or long ago.
    reports_unknown,
    /// Leases that ran out before the fetch was sent.
    leases_lost,
    /// Fetches whose result somebody else's had overtaken in the store.
    puts_lost,
    /// Fetches without a lease, or without a look at the store before: what was needed for them could
    /// not be reached.
    fetches_alone,
    /// Calls not made because the budget was used up.
    budget_refusals,
    /// Codes exchanged.
    exchanges,
    /// Exchanges told again, to who proved to have brought the code first.
    exchanges_repeated,
    /// Codes brought again without that proof.
    codes_used,
    /// Web tokens renewed, or tried to.
    renewals,
    /// Grants that WeChat said have ended.
    grants_ended,
    /// Calls that were sent again, because WeChat had refused their token.
    replays,
    /// Audit entries that could not be written, and are tried again.
    audit_failures,
    /// Rows of the store that could not be read and were left out.
    unreadable_rows,
}

/// One counter.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
