"""Orders over HTTP, through Kafka into Redis, with FastAPI: `python examples/fastapi_service.py`.

    POST /orders               accepts an order, {"id": "a-1", "customer": "ada", "amount": 12}
    GET  /customers/ada        returns the orders of ada
    GET  /health/readyz        200 while it accepts requests; also /livez, /startupz, /metrics
    GET  /health/status        the status page

    REDIS_URL                  URL of Redis (default redis://localhost:6379)
    KAFKA_BOOTSTRAP_SERVERS    brokers (default localhost:9092)
    ORDERS_TOPIC               topic of the orders (default orders)
    HOST, PORT                 address to listen on (default 127.0.0.1 and 8000)
    GRACE_PERIOD, DRAIN_DELAY  seconds for the shutdown, and of these, seconds during which it
                               serves requests while it is not ready (default 25 and 5)

On SIGTERM, the service is not ready and continues to answer for DRAIN_DELAY seconds. Then uvicorn
receives the signal and completes its requests, the consumer completes its records, and the clients
are closed. This order is necessary because uvicorn stops listening before it ends the lifespan.

It needs `pip install 'resilient-io[serve]' fastapi`.
"""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from resilient_io import (
    Dependency,
    HealthMonitor,
    ResilientIOError,
    ResilientKafkaConsumer,
    ResilientKafkaProducer,
    ResilientRedis,
    deadline,
)
from resilient_io.lifecycle import Lifecycle
from resilient_io.serve import health_app

if TYPE_CHECKING:
    from resilient_io.kafka import Record

REQUEST_SECONDS = 2.0


class Order(BaseModel):
    """An order."""

    id: str
    customer: str
    amount: int


def make_app() -> FastAPI:
    """Return the application; nothing is connected before its lifespan starts."""
    kafka = Dependency("kafka")
    servers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092")
    topic = os.environ.get("ORDERS_TOPIC", "orders")
    redis = ResilientRedis.from_url(
        os.environ.get("REDIS_URL", "redis://localhost:6379"), decode_responses=True
    )
    producer = ResilientKafkaProducer(bootstrap_servers=servers, health=kafka)
    consumer = ResilientKafkaConsumer(
        topic,
        bootstrap_servers=servers,
        group_id="bookkeeping",
        health=kafka,
        auto_offset_reset="earliest",
        value_deserializer=json.loads,
    )
    clients = (consumer, producer, redis)
    # All replicas share both servers, and can do something without either: they stay ready.
    monitor = HealthMonitor(shared=[redis.health, kafka], liveness=clients)
    lifecycle = Lifecycle(
        monitor,
        *clients,
        kafka,
        grace_period=float(os.environ.get("GRACE_PERIOD", "25")),
        drain_delay=float(os.environ.get("DRAIN_DELAY", "5")),
    )

    async def store(record: Record) -> None:
        order = Order(**record.value)
        # The key is the order's id: if an order is stored twice, it is still one order.
        await redis.hset(f"orders:{order.customer}", order.id, str(order.amount))

    @lifecycle.worker
    async def store_orders() -> None:
        await consumer.run(store, requires=[redis.health])

    app = FastAPI(lifespan=lifecycle.lifespan)
    app.mount("/health", health_app(monitor, clients=clients, name="orders"))

    @app.post("/orders", status_code=202)
    async def accept(order: Order) -> dict[str, str]:
        try:
            with deadline(REQUEST_SECONDS):
                await producer.send_and_wait(
                    topic, order.model_dump_json().encode(), key=order.customer.encode()
                )
        except ResilientIOError as error:
            raise HTTPException(503, str(error)) from error
        return {"accepted": order.id}

    @app.get("/customers/{customer}")
    async def customer(customer: str) -> dict[str, int]:
        try:
            with deadline(REQUEST_SECONDS):
                orders = await redis.hgetall(f"orders:{customer}")
        except ResilientIOError as error:
            raise HTTPException(503, str(error)) from error
        return {"orders": len(orders), "amount": sum(map(int, orders.values()))}

    return app


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    uvicorn.run(
        make_app(),
        host=os.environ.get("HOST", "127.0.0.1"),
        port=int(os.environ.get("PORT", "8000")),
        log_config=None,
    )
