"""The commands `serve keys` and `serve log`.

instructgpt serve keys add --keys keys.jsonl --name notebook --owner ann --allow-store
instructgpt serve log delete --store store/ --owner ann
"""

from __future__ import annotations

from instructgpt.errors import InputError
from instructgpt.serve.configs import ServeKeysConfig, ServeLogConfig
from instructgpt.serve.keys import add_key, approve_key, read_keys, remove_key
from instructgpt.serve.request_log import open_request_log


def manage_keys(config: ServeKeysConfig) -> None:
    """Add, approve, revoke or list keys. A new key is printed once."""
    if config.action == "list":
        if not config.keys.is_file():
            raise InputError(f"--keys {config.keys}: no such file")
        for key in read_keys(config.keys):
            consent = "store: true is kept" if key.store else "nothing is kept"
            approval = f"approved by {key.approved_by}" if key.approved_by else "not approved"
            print("\t".join((key.name, key.owner, key.use_case or "-", approval, consent, key.created)))
        return
    if not config.name:
        raise InputError(f"serve keys {config.action}: --name is required")
    if config.action == "revoke":
        remove_key(config.keys, config.name)
        print(f"revoked '{config.name}'; a running server refuses it from the next request on")
        return
    if config.action == "approve":
        if not config.approved_by:
            raise InputError("serve keys approve: --approved-by is required: the person who approves the use case")
        approve_key(config.keys, config.name, config.approved_by)
        print(f"approved '{config.name}'; a running server accepts it from the next request on")
        return
    if not config.owner:
        raise InputError("serve keys add: --owner is required: the person or team that the key is for")
    print(add_key(config.keys, config.name, config.owner, config.use_case, config.allow_store))
    if config.approved_by:
        approve_key(config.keys, config.name, config.approved_by)


def manage_log(config: ServeLogConfig) -> None:
    """Count kept requests, delete those of an owner, or those that are older than some days."""
    request_log = open_request_log(config.store)
    if config.action == "delete":
        if not config.owner:
            raise InputError("serve log delete: --owner is required: whose requests are deleted")
        print(
            f"deleted {request_log.delete_owner(config.owner)} requests of {config.owner}; models already trained stay"
        )
    elif config.action == "expire":
        if config.days is None:
            raise InputError("serve log expire: --days is required: how long requests are kept")
        print(f"deleted {request_log.delete_before(config.days)} requests older than {config.days} days")
    for name, count in request_log.counts().items():
        print(f"{name}: {count}")
