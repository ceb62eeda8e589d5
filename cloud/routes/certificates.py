"""Certificates of bundles, as audits see them: do they still hold?"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from fastapi import APIRouter

from cloud.routes.bundles import Digest
from cloud.service import Service, ServiceDep
from cloud.watch.certificate import Watched
from cloud.watch.watcher import certificates_of, watched_bundles
from sluice.wire.names import Name

router = APIRouter(tags=["certificates"])


@dataclass(frozen=True, slots=True)
class CertificateView(Watched):
    """The promise of one operating point, and what audits say of it; see `cloud.watch.certificate.Watched`.

    `does not hold` is wrong with a probability of at most `level`, however often one asks. `too few audits`: they say
    neither the one nor the other. `since`, UTC µs: of the audit that decided.
    """

    bundle: str


def _views(service: Service, digest: str) -> list[CertificateView]:
    return [CertificateView(**asdict(one), bundle=digest) for one in certificates_of(service, digest)]


@router.get("/certificates")
def list_certificates(service: ServiceDep, model: Name | None = None) -> list[CertificateView]:
    """The certificates of all bundles that there are audits of."""
    return [view for digest in watched_bundles(service, model) for view in _views(service, digest)]


@router.get("/bundles/{digest}/certificate")
def get_certificate(service: ServiceDep, digest: Digest) -> list[CertificateView]:
    """The certificates of one bundle, one for each operating point that has one."""
    return _views(service, digest)
