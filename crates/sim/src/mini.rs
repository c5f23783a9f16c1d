//! Mini programs: sessions and what a mini program encrypts with their keys.

use std::collections::{BTreeMap, HashMap};

use aws_lc_rs::{
    cipher::{AES_128, EncryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey},
    digest::{SHA1_FOR_LEGACY_USE_ONLY, digest},
    error::Unspecified,
    iv::FixedLength,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use clock::Timestamp;
use serde_json::{Map, Value, json};

use crate::{answer::Failure, exchange::Call, oauth::Purpose, rng::Rng, state::State};

/// The sessions of a mini program's users.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    /// The session key of a user, since the login that made it.
    keys: BTreeMap<String, [u8; 16]>,
    minute: i64,
    /// How often a user's codes were brought in this minute.
    brought: HashMap<String, u64>,
}

impl Sessions {
    /// A user logs in: the session key is made, or replaced if `replace`.
    fn log_in(&mut self, openid: &str, replace: bool, rng: &mut Rng) {
        if replace || !self.keys.contains_key(openid) {
            self.keys.insert(openid.to_owned(), rng.bytes16());
        }
    }

    /// Counts a code of a user that is brought, and says whether it is one too many.
    fn bring(&mut self, openid: &str, now: Timestamp) -> bool {
        const A_MINUTE: u64 = 100;
        let minute = now.as_secs().div_euclid(60);
        if minute != self.minute {
            self.minute = minute;
            self.brought.clear();
        }
        let brought = self.brought.entry(openid.to_owned()).or_default();
        *brought += 1;
        *brought > A_MINUTE
    }
}

/// What a mini program reads of its user, as it would hand it to its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptedData {
    /// The data with its watermark, encrypted with the session key, in base64.
    pub encrypted_data: String,
    /// The initialisation vector, in base64.
    pub iv: String,
    /// The data without watermark, as JSON.
    pub raw_data: String,
    /// SHA-1 of `raw_data` and session key, in hexadecimal digits.
    pub signature: String,
}

impl State {
    /// Issues a `js_code` of a user as a login in the mini program does.
    pub(crate) fn issue_js_code(&mut self, appid: &str, openid: &str, now: Timestamp) -> String {
        if let Some(app) = self.apps.get_mut(appid) {
            let replace = self.switches.login_replaces_session_key;
            app.sessions.log_in(openid, replace, &mut self.secrets);
        }
        let subject = self.grants.subject(appid, openid, false);
        let life = self.switches.short_code_life();
        self.grants.issue_code(subject, Purpose::Mini, (now, life), 0)
    }

    pub(crate) fn jscode2session(&mut self, call: &Call, now: Timestamp) -> Result<Value, Failure> {
        let (appid, code) = self.check_code_claim(call, "js_code")?;
        if let Some(subject) = self.grants.subject_of_code(code)
            && subject.appid == appid
            && let Some(app) = self.apps.get_mut(appid)
            && app.sessions.bring(&subject.openid, now)
        {
            return Err(Failure::new(45011));
        }
        let wanted = |purpose| (purpose == Purpose::Mini).then_some(());
        let (subject, ()) = self.grants.redeem(code, appid, wanted, (now, &self.switches))?;
        let sessions = self.apps.get(appid).map(|app| &app.sessions.keys);
        let key = sessions.and_then(|keys| keys.get(&subject.openid));
        let key = key.ok_or_else(|| Failure::new(40029))?;
        let mut answer = json!({ "session_key": STANDARD.encode(key), "openid": subject.openid });
        if let Some(unionid) = self.unionid(&subject) {
            answer["unionid"] = unionid.into();
        }
        Ok(answer)
    }

    /// Encrypts data for a user who has logged in; `None` for one who has not.
    pub(crate) fn encrypt_for(
        &mut self,
        appid: &str,
        openid: &str,
        data: Map<String, Value>,
        now: Timestamp,
    ) -> Option<EncryptedData> {
        let key = self.apps.get(appid)?.sessions.keys.get(openid)?;
        encrypt(key, &self.secrets.bytes16(), appid, data, now).ok()
    }
}

fn encrypt(
    key: &[u8; 16],
    iv: &[u8; 16],
    appid: &str,
    data: Map<String, Value>,
    now: Timestamp,
) -> Result<EncryptedData, Unspecified> {
    let raw_data = Value::Object(data.clone()).to_string();
    let mut marked = data;
    let watermark = json!({ "timestamp": now.as_secs(), "appid": appid });
    marked.insert("watermark".to_owned(), watermark);
    let mut bytes = Value::Object(marked).to_string().into_bytes();
    let cipher = PaddedBlockEncryptingKey::cbc_pkcs7(UnboundCipherKey::new(&AES_128, key)?)?;
    cipher.less_safe_encrypt(&mut bytes, EncryptionContext::Iv128(FixedLength::from(iv)))?;
    let signed = format!("{raw_data}{}", STANDARD.encode(key));
    let sum = digest(&SHA1_FOR_LEGACY_USE_ONLY, signed.as_bytes());
    Ok(EncryptedData {
        encrypted_data: STANDARD.encode(bytes),
        iv: STANDARD.encode(iv),
        raw_data,
        signature: sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect(),
    })
}
