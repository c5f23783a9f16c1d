//! The table of routes: what exists, and who may call it.
//!
//! Everything else follows from it: the router has these routes and no other, [`super::call`] asks
//! it for the permission, the OpenAPI document and the tests walk through it. A route without a
//! policy cannot be written down.

use std::time::Duration;

use axum::http::Method;
use broker::key::Permission;

/// One route of the API.
#[derive(Clone, Debug)]
pub struct Route {
    /// What it does.
    pub operation: Operation,
    /// Its method. `GET` answers `HEAD` too.
    pub method: Method,
    /// Its path, with parameters in braces.
    pub path: &'static str,
    /// Who may call it.
    pub access: Access,
    /// What it does, in a few words.
    pub summary: &'static str,
}

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Public,
    /// A client key with the permission, for the apps that it reaches.
    Needs(Permission),
}

/// What the API can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Read the global token, or wait for its next generation.
    ReadToken,
    /// Report that a token failed.
    ReportToken,
    /// Read a ticket.
    ReadTicket,
    /// Sign a page for the JS-SDK.
    SignPage,
    /// Read one follower.
    ReadUser,
    /// Read many followers.
    ReadUsers,
    /// List followers.
    ListUsers,
    /// Make the address of the page where a user consents.
    AuthorizeUrl,
    /// Exchange the code of a web authorisation.
    ExchangeCode,
    /// Read what is held of a user who authorised.
    ReadGrants,
    /// Forget a user who authorised.
    ForgetUser,
    /// Read the profile of a user who authorised.
    ReadProfile,
    /// Exchange the code of a mini program's login.
    MiniLogin,
    /// Open data of a mini program.
    MiniDecrypt,
    /// Check a signature of a mini program.
    MiniCheckSignature,
    /// Read the description of the API.
    OpenApi,
    /// Whether the process lives.
    Health,
    /// Whether it can serve.
    Ready,
}

/// All routes.
pub static ROUTES: [Route; 18] = [
    Route {
        operation: Operation::ReadToken,
        method: Method::GET,
        path: "/v1/apps/{app}/token",
        access: Access::Needs(Permission::Token),
        summary: "The app's global access token, or a wait for its next generation",
    },
    Route {
        operation: Operation::ReportToken,
        method: Method::POST,
        path: "/v1/apps/{app}/token/report",
        access: Access::Needs(Permission::Report),
        summary: "Reports that WeChat refused a token; answers the token to use now",
    },
    Route {
        operation: Operation::ReadTicket,
        method: Method::GET,
        path: "/v1/apps/{app}/tickets/{kind}",
        access: Access::Needs(Permission::Tickets),
        summary: "A ticket of the app",
    },
    Route {
        operation: Operation::SignPage,
        method: Method::POST,
        path: "/v1/apps/{app}/jssdk/config",
        access: Access::Needs(Permission::Tickets),
        summary: "What a page passes to wx.config of the JS-SDK",
    },
    Route {
        operation: Operation::ReadUser,
        method: Method::GET,
        path: "/v1/apps/{app}/users/{openid}",
        access: Access::Needs(Permission::Users),
        summary: "The record of one follower",
    },
    Route {
        operation: Operation::ReadUsers,
        method: Method::POST,
        path: "/v1/apps/{app}/users/batch",
        access: Access::Needs(Permission::Users),
        summary: "The records of many followers, in the order asked",
    },
    Route {
        operation: Operation::ListUsers,
        method: Method::GET,
        path: "/v1/apps/{app}/users",
        access: Access::Needs(Permission::Users),
        summary: "The openids of the followers, up to 10,000 at a time",
    },
    Route {
        operation: Operation::AuthorizeUrl,
        method: Method::POST,
        path: "/v1/apps/{app}/oauth/authorize-url",
        access: Access::Needs(Permission::Oauth),
        summary: "WeChat's page where a user consents, as an address to send the browser to",
    },
    Route {
        operation: Operation::ExchangeCode,
        method: Method::POST,
        path: "/v1/apps/{app}/oauth/exchange",
        access: Access::Needs(Permission::Oauth),
        summary: "Who the user is whose browser brought a code",
    },
    Route {
        operation: Operation::ReadGrants,
        method: Method::GET,
        path: "/v1/apps/{app}/grants/{openid}",
        access: Access::Needs(Permission::Oauth),
        summary: "What is held of a user who authorised, without its tokens",
    },
    Route {
        operation: Operation::ForgetUser,
        method: Method::DELETE,
        path: "/v1/apps/{app}/grants/{openid}",
        access: Access::Needs(Permission::Oauth),
        summary: "Forgets all that is held of a user who authorised",
    },
    Route {
        operation: Operation::ReadProfile,
        method: Method::GET,
        path: "/v1/apps/{app}/grants/{openid}/profile",
        access: Access::Needs(Permission::Oauth),
        summary: "The profile of a user who authorised",
    },
    Route {
        operation: Operation::MiniLogin,
        method: Method::POST,
        path: "/v1/apps/{app}/mini/login",
        access: Access::Needs(Permission::Oauth),
        summary: "Who the user of a mini program is, and a session for their data",
    },
    Route {
        operation: Operation::MiniDecrypt,
        method: Method::POST,
        path: "/v1/apps/{app}/mini/decrypt",
        access: Access::Needs(Permission::Oauth),
        summary: "Opens what a mini program got as encryptedData",
    },
    Route {
        operation: Operation::MiniCheckSignature,
        method: Method::POST,
        path: "/v1/apps/{app}/mini/check-signature",
        access: Access::Needs(Permission::Oauth),
        summary: "Checks the signature of what a mini program got as rawData",
    },
    Route {
        operation: Operation::OpenApi,
        method: Method::GET,
        path: "/v1/openapi.json",
        access: Access::Public,
        summary: "This description",
    },
    Route {
        operation: Operation::Health,
        method: Method::GET,
        path: "/healthz",
        access: Access::Public,
        summary: "Whether the process lives; touches nothing else",
    },
    Route {
        operation: Operation::Ready,
        method: Method::GET,
        path: "/readyz",
        access: Access::Public,
        summary: "Whether the server can answer callers and is not about to stop",
    },
];

impl Route {
    /// The route of an operation.
    pub fn of(operation: Operation) -> &'static Self {
        ROUTES
            .iter()
            .find(|route| route.operation == operation)
            .expect("every operation has a route, as a test checks")
    }

    /// The names of the parameters in the path, in their order.
    pub fn parameters(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
    }

    /// Whether it is about one app, named in the path.
    pub fn names_app(&self) -> bool {
        self.parameters().any(|name| name == "app")
    }
}

impl Operation {
    /// All operations.
    pub const ALL: [Self; 18] = [
        Self::ReadToken,
        Self::ReportToken,
        Self::ReadTicket,
        Self::SignPage,
        Self::ReadUser,
        Self::ReadUsers,
        Self::ListUsers,
        Self::AuthorizeUrl,
        Self::ExchangeCode,
        Self::ReadGrants,
        Self::ForgetUser,
        Self::ReadProfile,
        Self::MiniLogin,
        Self::MiniDecrypt,
        Self::MiniCheckSignature,
        Self::OpenApi,
        Self::Health,
        Self::Ready,
    ];

    /// Its name in the OpenAPI document.
    pub const fn id(self) -> &'static str {
        match self {
            Self::ReadToken => "readToken",
            Self::ReportToken => "reportToken",
            Self::ReadTicket => "readTicket",
            Self::SignPage => "signPage",
            Self::ReadUser => "readUser",
            Self::ReadUsers => "readUsers",
            Self::ListUsers => "listUsers",
            Self::AuthorizeUrl => "authorizeUrl",
            Self::ExchangeCode => "exchangeCode",
            Self::ReadGrants => "readGrants",
            Self::ForgetUser => "forgetUser",
            Self::ReadProfile => "readProfile",
            Self::MiniLogin => "miniLogin",
            Self::MiniDecrypt => "miniDecrypt",
            Self::MiniCheckSignature => "miniCheckSignature",
            Self::OpenApi => "openapi",
            Self::Health => "health",
            Self::Ready => "ready",
        }
    }

    /// The parameters that its query may have.
    pub const fn query(self) -> &'static [&'static str] {
        match self {
            Self::ReadToken => &["min_ttl", "after", "wait"],
            Self::ReadUser => &["lang"],
            Self::ListUsers => &["next_openid"],
            Self::ReadProfile => &["lang", "fresh", "redirect_uri"],
            Self::ReportToken
            | Self::ReadTicket
            | Self::SignPage
            | Self::ReadUsers
            | Self::AuthorizeUrl
            | Self::ExchangeCode
            | Self::ReadGrants
            | Self::ForgetUser
            | Self::MiniLogin
            | Self::MiniDecrypt
            | Self::MiniCheckSignature
            | Self::OpenApi
            | Self::Health
            | Self::Ready => &[],
        }
    }

    /// The most bytes that its body may have: as little as it can need, at most `limit`.
    pub(super) fn body_limit(self, limit: usize) -> usize {
        match self {
            Self::ReportToken
            | Self::SignPage
            | Self::AuthorizeUrl
            | Self::ExchangeCode
            | Self::MiniLogin => limit.min(16 * 1024),
            Self::MiniDecrypt | Self::MiniCheckSignature => limit.min(64 * 1024),
            Self::ReadUsers => limit,
            Self::ReadToken
            | Self::ReadTicket
            | Self::ReadUser
            | Self::ListUsers
            | Self::ReadGrants
            | Self::ForgetUser
            | Self::ReadProfile
            | Self::OpenApi
            | Self::Health
            | Self::Ready => 0,
        }
    }

    /// How much longer than others it may take.
    pub(super) const fn extra_time(self) -> Duration {
        match self {
            Self::ReadToken => super::token::LONGEST_WAIT,
            // A hundred calls to WeChat, one after the other.
            Self::ReadUsers => Duration::from_secs(120),
            // The broker has a limit of its own: WeChat does not answer a code twice.
            Self::ExchangeCode | Self::MiniLogin => Duration::from_secs(60),
            // A renewal that another process left half done, and then the profile.
            Self::ReadProfile => Duration::from_secs(30),
            Self::ReportToken
            | Self::ReadTicket
            | Self::SignPage
            | Self::ReadUser
            | Self::ListUsers
            | Self::AuthorizeUrl
            | Self::ReadGrants
            | Self::ForgetUser
            | Self::MiniDecrypt
            | Self::MiniCheckSignature
            | Self::OpenApi
            | Self::Health
            | Self::Ready => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_operation_has_exactly_one_route() {
        for operation in Operation::ALL {
            let routes = ROUTES.iter().filter(|route| route.operation == operation);
            assert_eq!(routes.count(), 1, "{operation:?}");
        }
        assert_eq!(ROUTES.len(), Operation::ALL.len());
        let ids: HashSet<_> = Operation::ALL.map(Operation::id).into();
        assert_eq!(ids.len(), ROUTES.len());
        let places: HashSet<_> = ROUTES.iter().map(|route| (&route.method, route.path)).collect();
        assert_eq!(places.len(), ROUTES.len());
    }

    #[test]
    fn what_is_about_an_app_needs_a_permission_and_nothing_else_does() {
        for route in &ROUTES {
            let needs = matches!(route.access, Access::Needs(_));
            assert_eq!(needs, route.names_app(), "{}", route.path);
        }
    }
}
