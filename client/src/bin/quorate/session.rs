//! What every command has at hand: the cluster to talk to, and how to answer.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use quorate_client::{AdminClient, Mode, Options};
use serde::Serialize;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::args::{Consent, Global, Planning};
use crate::context;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Format};

#[derive(Debug)]
pub struct Session {
    pub client: AdminClient,
    pub bootstrap: Vec<String>,
    pub options: Options,
    pub format: Format,
}

impl Session {
    pub fn open(global: Global) -> Outcome<Self> {
        let bootstrap = context::bootstrap(&global.bootstrap, global.context.as_deref())?;
        let options = Options { timeout: global.timeout, tls: tls(&global)?, ..Options::default() };
        let client = AdminClient::connect(&bootstrap, options.clone())?;
        Ok(Self { client, bootstrap, options, format: global.output })
    }

    pub fn show<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Outcome {
        output::show(self.format, value, text)
    }

    /// Asks before something is destroyed. Without a terminal nobody could answer, so consent must be on the command line.
    pub fn confirm(&self, what: &str, consent: Consent, planning: Planning) -> Outcome {
        if consent.yes || planning.plan {
            return Ok(());
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::usage(format!("this would {what}: give --yes where nobody can be asked")));
        }
        eprint!("This will {what}. Go on? [y/N] ");
        let mut answer = String::new();
        io::stderr()
            .flush()
            .and_then(|()| io::stdin().read_line(&mut answer))
            .map_err(|error| Failure::local("cannot ask", error))?;
        if matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
            return Ok(());
        }
        output::note("nothing was done");
        Err(Failure::Told)
    }
}

impl Planning {
    pub fn mode(self) -> Mode {
        if self.plan { Mode::PlanOnly } else { Mode::Apply }
    }
}

fn tls(global: &Global) -> Outcome<Option<ClientTlsConfig>> {
    let Some(ca) = &global.tls_ca else { return Ok(None) };
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem(ca)?));
    if let (Some(certificate), Some(key)) = (&global.tls_cert, &global.tls_key) {
        tls = tls.identity(Identity::from_pem(pem(certificate)?, pem(key)?));
    }
    Ok(Some(tls))
}

fn pem(path: &Path) -> Outcome<Vec<u8>> {
    std::fs::read(path).map_err(|error| Failure::local(format!("cannot read {}", path.display()), error))
}
