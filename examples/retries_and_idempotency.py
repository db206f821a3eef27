"""Take a payment once, although replies are lost, jobs run again, and the caller submits twice.

- `RetryPolicy` says how often, after how long and for which errors a job runs again; `raise Retry` asks for it.
- `using(key=…)`: a second submission with the same key returns the first job.
- `ctx.key` is the same in all attempts of a job: give it to services that take an idempotency key.
- `ctx.transaction()`: the rows it writes are committed together with the job's success, or not at all.

Run it in two terminals; run the second line twice, and nobody pays twice:

    $ cplane dev examples/retries_and_idempotency.py
    $ python examples/retries_and_idempotency.py
"""

import asyncio
from uuid import NAMESPACE_OID, uuid5

from sqlmodel import Field, SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from cplane import Context, ControlPlane, JobFailed, Retry, RetryPolicy, job


class Payment(SQLModel, table=True):
    """A table of the application, in the same database as the jobs."""

    order_id: str = Field(primary_key=True)
    charge: str


class CardDeclinedError(Exception):
    """No other attempt changes that."""


class Bank:
    """Stands for a service elsewhere that takes an idempotency key. Its first reply to each key is lost on the way."""

    def __init__(self) -> None:
        self.charges: dict[str, str] = {}

    async def charge(self, cents: int, *, key: str) -> str:
        """Take the money once for each key. Returns the id of the charge."""
        if cents > 100_000:
            raise CardDeclinedError("the limit of the card is 1000.00")
        if key not in self.charges:
            self.charges[key] = f"charge-{uuid5(NAMESPACE_OID, key).hex[:8]}"
            raise ConnectionError("the connection was lost")
        return self.charges[key]


bank = Bank()


@job
async def create_table(session: AsyncSession) -> None:
    """A parameter annotated `AsyncSession` is the transaction of the job."""
    await (await session.connection()).run_sync(SQLModel.metadata.create_all)


@job(retries=RetryPolicy(retries=5, backoff_s=0.2, never=(CardDeclinedError,)))
async def pay(ctx: Context, order_id: str, cents: int) -> str:
    """Charge the card, then record the payment with the success of the job."""
    charge = await bank.charge(cents, key=ctx.key)
    async with ctx.transaction() as session:
        session.add(Payment(order_id=order_id, charge=charge))
    return charge


@job(retries=100)
async def ship(ctx: Context, order_id: str) -> str:
    """Wait for the payment without holding a worker's slot: the job runs again after the delay."""
    async with ctx.transaction() as session:
        payment = await session.get(Payment, order_id)
    if payment is None:
        raise Retry(f"{order_id} is not paid yet", delay=0.2)
    return f"{order_id} is shipped, paid by {payment.charge}"


async def main() -> None:
    """Submit a payment twice, a shipment that needs it, and a payment that is declined."""
    async with ControlPlane() as plane:
        await (await create_table.submit()).result(timeout=30)
        shipping = await ship.using(key="ship order-17").submit("order-17")
        first = await pay.using(key="pay order-17").submit("order-17", 4_990)
        again = await pay.using(key="pay order-17").submit("order-17", 4_990)
        print(f"one job: {first.id == again.id}; created by the second submission: {again.created}")
        charge = await first.result(timeout=30)
        print(f"paid by {charge} in {len(await plane.attempts(first.id))} attempts")
        print(await shipping.result(timeout=30))
        declined = await pay.using(key="pay order-18").submit("order-18", 250_000)
        try:
            await declined.result(timeout=30)
        except JobFailed as error:
            print(f"declined in {len(await plane.attempts(declined.id))} attempt: {error.error_message}")


if __name__ == "__main__":
    asyncio.run(main())
