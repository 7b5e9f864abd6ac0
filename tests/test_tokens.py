"""Access tokens: what is accepted, and every way in which one can be wrong."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shared.errors import DependencyUnavailable, Unauthenticated
from shared.security.tokens import TokenValidator
from tests import oidc_issuer
from tests.oidc_issuer import AUDIENCE, TENANT, Issuer


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with oidc_issuer.running() as issuer:
        yield issuer


@pytest.fixture
def validator(issuer: Issuer) -> TokenValidator:
    return TokenValidator(issuer.url, [AUDIENCE, "other"], TENANT, cooldown=0)


def refused(validator: TokenValidator, token: str) -> str:
    with pytest.raises(Unauthenticated) as error:
        validator.validate(token)
    return str(error.value)


def encoded(part: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def test_a_valid_token_gives_its_claims_and_the_issuer_is_asked_once(
    issuer: Issuer, validator: TokenValidator
) -> None:
    for _ in range(20):
        claims = validator.validate(issuer.token("DICOM Data Owner"))
    assert claims["roles"] == ["DICOM Data Owner"]
    assert claims["oid"]
    assert validator.validate(issuer.token(aud=["x", "other"]))
    assert issuer.requests == ["/.well-known/openid-configuration", "/keys"]


def test_every_wrong_token_is_refused_with_its_reason(issuer: Issuer, validator: TokenValidator) -> None:
    now = int(time.time())
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = issuer.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    good = issuer.token()
    head, body, signature = good.split(".")
    tampered = json.loads(base64.urlsafe_b64decode(body + "=="))
    tampered["roles"] = ["DICOM Data Owner"]
    cases = {
        issuer.token(exp=now - 120): "expired",
        issuer.token(exp=None): "lacks a claim",
        issuer.token(nbf=now + 600): "not valid yet",
        issuer.token(aud="api://something-else"): "another audience",
        issuer.token(aud=None): "lacks a claim",
        issuer.token(iss="https://login.example.org"): "another issuer",
        issuer.token(tid="11111111-1111-4111-8111-111111111111"): "another tenant",
        issuer.token(tid=None): "another tenant",
        issuer.token(key=stranger): "signature is wrong",
        issuer.token(key=base64.b64encode(public).decode(), algorithm="HS256"): "not signed with RS256",
        issuer.token(key="", algorithm="none"): "not signed with RS256",
        f"{encoded({'alg': 'none', 'kid': issuer.kid})}.{body}.": "not signed with RS256",
        f"{head}.{encoded(tampered)}.{signature}": "signature is wrong",
        f"{head}.{body}.": "signature is wrong",
        f"{head}.{body}": "malformed",
        "not-a-token": "malformed",
        "a" * 100_000: "too long",
    }
    for token, reason in cases.items():
        assert reason in refused(validator, token), reason
    assert validator.validate(good)


def test_a_clock_may_be_wrong_by_a_minute(issuer: Issuer, validator: TokenValidator) -> None:
    now = int(time.time())
    assert validator.validate(issuer.token(exp=now - 30, nbf=now + 30))


def test_a_new_key_is_fetched_and_an_old_one_is_no_longer_valid(
    issuer: Issuer, validator: TokenValidator
) -> None:
    before = issuer.token()
    assert validator.validate(before)
    issuer.rotate()
    assert validator.validate(issuer.token())
    assert "key the issuer does not have" in refused(validator, before)


def test_unknown_keys_do_not_make_the_server_hammer_its_issuer(issuer: Issuer) -> None:
    validator = TokenValidator(issuer.url, [AUDIENCE], cooldown=60)
    assert validator.validate(issuer.token())
    issuer.kid, key = "invented", issuer.key
    for _ in range(50):
        assert "key the issuer does not have" in refused(validator, issuer.token(key=key))
    assert issuer.requests.count("/keys") == 1


def test_an_issuer_that_does_not_answer_is_a_dependency_and_tokens_work_once_it_does(issuer: Issuer) -> None:
    validator = TokenValidator(issuer.url, [AUDIENCE])
    issuer.broken = True
    with pytest.raises(DependencyUnavailable):
        validator.validate(issuer.token())
    issuer.broken = False
    assert validator.validate(issuer.token())


def test_known_keys_outlast_an_outage_of_the_issuer(issuer: Issuer, validator: TokenValidator) -> None:
    assert validator.validate(issuer.token())
    issuer.broken = True
    assert validator.validate(issuer.token())


def test_tokens_of_users_need_the_scope_and_those_of_applications_do_not(issuer: Issuer) -> None:
    validator = TokenValidator(issuer.url, [AUDIENCE], scope="Dicom.ReadWrite")
    assert validator.validate(issuer.token(scp="Dicom.ReadWrite openid"))
    assert validator.validate(issuer.token())
    assert "lacks the scope" in refused(validator, issuer.token(scp="openid"))


@pytest.mark.parametrize("url", ["http://login.example.org", "ftp://127.0.0.1", "login.example.org"])
def test_an_authority_without_tls_is_no_authority(url: str) -> None:
    with pytest.raises(ValueError, match="https"):
        TokenValidator(url, [AUDIENCE])


def test_an_authority_needs_an_audience() -> None:
    with pytest.raises(ValueError, match="audience"):
        TokenValidator("https://login.example.org", [])
