//! `[session] cookie`: the name and the attributes of the affinity cookie.

use warmhop::cookie::CookieSpec;

use super::{Reader, Table};
use crate::config::{App, Session};

pub(super) fn read(mut table: Table<'_>, spec: &mut CookieSpec) {
    if let Some(name) = table.take("name").and_then(|field| field.text()) {
        spec.name = name.into();
    }
    table.set_enum("same_site", &["strict", "lax", "none"], &mut spec.same_site);
    spec.secure = table.take("secure").and_then(|field| field.boolean());
    spec.domain = table.take("domain").and_then(|field| field.text()).map(str::to_ascii_lowercase);
    spec.route = table.one_of("route", &["name", "opaque"]);
    table.finish();
}

/// Reports what browsers would refuse about the cookie for these apps.
pub(super) fn check<'a>(reader: &Reader<'_>, session: &mut Session, apps: &'a [App]) {
    let cookie = &mut session.policy.cookie;
    let report = |key: &str, what: &str, remedy: &str| {
        let key = format!("session.cookie.{key}");
        let place = reader.places.borrow().get(&key).copied();
        reader.report_at(place, key, what, remedy);
    };
    if let Err(mistake) =
        cookie.settle(apps.iter().flat_map(|app| &app.spec.matches).map(|it| it.path.as_str()))
    {
        report(mistake.key, mistake.what, mistake.remedy);
        return;
    }
    let Some(domain) = &cookie.domain else { return };
    let is_below = |host: &str| {
        let host = host.to_ascii_lowercase();
        host.strip_suffix(domain.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    let hosts = |app: &'a App| app.spec.matches.iter().flat_map(|it| &it.hosts);
    let mut all = apps.iter().flat_map(|app| hosts(app).map(move |host| (app, host)));
    if let Some((app, host)) = all.find(|(_, host)| !is_below(host.name())) {
        let what = format!(
            "app {} answers for {host}, which is not below {domain}: browsers would refuse its cookie",
            app.spec.name
        );
        report("domain", &what, "leave it out, or name a domain that all hosts are below");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::Config;

    #[test]
    fn the_route_is_opaque_where_nothing_is_revealed_unless_it_is_said_otherwise() {
        let route = |text: &str| {
            let text = format!("[peer]\nname = 'p'\n{text}");
            let printed = Config::parse(Path::new("/f"), &text).unwrap().0.to_string();
            printed.split_once("route = \"").unwrap().1.split('"').next().unwrap().to_owned()
        };
        assert_eq!(route(""), "name");
        assert_eq!(route("[http]\nreveal = false"), "opaque");
        assert_eq!(route("[http]\nreveal = false\n[session.cookie]\nroute = 'name'"), "name");
        assert_eq!(route("[session.cookie]\nroute = 'opaque'"), "opaque");
    }
}
