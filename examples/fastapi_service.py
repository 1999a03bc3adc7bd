"""Orders by HTTP, through Kafka into Redis, on FastAPI: `python examples/fastapi_service.py`.

    POST /orders               takes an order, {"id": "a-1", "customer": "ada", "amount": 12}
    GET  /customers/ada        says what ada has ordered
    GET  /health/readyz        200 while it wants requests; also /livez, /startupz, /metrics
    GET  /health/status        the status page

    REDIS_URL                  where Redis is (default redis://localhost:6379)
    KAFKA_BOOTSTRAP_SERVERS    where Kafka is (default localhost:9092)
    ORDERS_TOPIC               where orders go (default orders)
    HOST, PORT                 where to listen (default 127.0.0.1 and 8000)
    GRACE, NOTICE              seconds to end in, and to go on while not ready (default 25 and 5)

On SIGTERM it is not ready at once and goes on answering while the load balancer notices. Then
uvicorn hears the signal and ends its requests, and the consumer its records; then the clients are
closed. Readiness comes first because uvicorn stops listening before it ends the lifespan.

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

TIME_FOR_A_REQUEST = 2.0


class Order(BaseModel):
    """What is ordered."""

    id: str
    customer: str
    amount: int


def make_app() -> FastAPI:
    """Make the service; nothing is connected before its lifespan begins."""
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
    monitor = HealthMonitor(redis.health, kafka, liveness=clients)
    lifecycle = Lifecycle(
        monitor,
        *clients,
        kafka,
        grace=float(os.environ.get("GRACE", "25")),
        notice=float(os.environ.get("NOTICE", "5")),
    )

    async def book(record: Record) -> None:
        order = Order(**record.value)
        # Filed under its id: booked twice, it is one order.
        await redis.hset(f"orders:{order.customer}", order.id, str(order.amount))

    @lifecycle.worker
    async def book_orders() -> None:
        await consumer.run(book, requires=[redis.health])

    app = FastAPI(lifespan=lifecycle.lifespan)
    app.mount("/health", health_app(monitor, clients=clients, name="orders"))

    @app.post("/orders", status_code=202)
    async def take(order: Order) -> dict[str, str]:
        try:
            with deadline(TIME_FOR_A_REQUEST):
                await producer.send_and_wait(
                    topic, order.model_dump_json().encode(), key=order.customer.encode()
                )
        except ResilientIOError as error:
            raise HTTPException(503, str(error)) from error
        return {"taken": order.id}

    @app.get("/customers/{customer}")
    async def customer(customer: str) -> dict[str, int]:
        try:
            with deadline(TIME_FOR_A_REQUEST):
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
